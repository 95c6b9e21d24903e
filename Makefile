# The commands of the README. Each sets up .venv by itself.
.PHONY: demo test test-slow test-llama-cpp test-vllm check docs build bench clean

INPUTS = pyproject.toml requirements/constraints.txt scripts/setup

demo: .venv/.demo
	.venv/bin/foretoken compare --show-drafts --dtype float32 --max-new-tokens 160 --temperature 0.6 --seed 2 \
		--file examples/prompts/module.py --file examples/prompts/pattern.py --file examples/prompts/story.txt
	.venv/bin/foretoken bench methods --dtype float32 --temperature 0.8 --limit 1 --rounds 1 --max-new-tokens 48 \
		--method ngram-adaptive --method mixed-adaptive --method speculator-adaptive \
		--method refined-speculator-adaptive --method mixed-speculator-adaptive

test: .venv/.dev
	scripts/test

test-slow: .venv/.dev
	scripts/test -m slow

# The first time builds llama.cpp, which takes 7 to 25 minutes.
test-llama-cpp: .venv/.dev
	PYTHONPATH="$$(scripts/setup-llama-cpp)" OMP_WAIT_POLICY=passive scripts/test -m llama_cpp tests

# The first time makes an environment with vLLM, 3.5 GB in some minutes.
test-vllm: .venv/.dev
	PYTHONPATH=src VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 "$$(scripts/setup-vllm)" -m pytest -m 'vllm and not slow' tests/hosts/vllm

check: .venv/.dev
	scripts/check

docs: .venv/.docs
	scripts/docs

build: .venv/.dev
	scripts/build

# DATA is folders of recorded answers and TOKENIZER the tokenizer.json to read them with; without them their tables are
# left out, and replayed takes the bundled model's answers.
RECORDED = $(if $(DATA),$(addprefix --data ,$(DATA)) --tokenizer $(TOKENIZER))

bench: .venv/.demo
	.venv/bin/foretoken bench methods --dtype float32 --dtype bfloat16
	.venv/bin/python -m benchmarks.never_slower
	.venv/bin/python -m benchmarks.overhead
	.venv/bin/python -m benchmarks.latency
	.venv/bin/python -m benchmarks.replayed $(if $(DATA),$(RECORDED) --per-set 1)
	$(if $(DATA),.venv/bin/python -m benchmarks.traces $(RECORDED))

clean:
	rm -rf .venv build

.venv/.demo: $(INPUTS)
	scripts/setup
	@touch $@

.venv/.dev: $(INPUTS)
	scripts/setup dev
	@touch .venv/.demo $@ # which needs no more

.venv/.docs: $(INPUTS)
	scripts/setup docs
	@touch $@
