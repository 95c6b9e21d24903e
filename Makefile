# The commands of the README. Each sets up .venv by itself.
.PHONY: demo test check docs build bench clean

INPUTS = pyproject.toml requirements/constraints.txt scripts/setup

demo: .venv/.demo
	.venv/bin/foretoken compare --show-drafts --dtype float32 --max-new-tokens 160 --temperature 0.6 --seed 2 \
		--file examples/prompts/module.py --file examples/prompts/pattern.py --file examples/prompts/story.txt

test: .venv/.dev
	scripts/test

check: .venv/.dev
	scripts/check

docs: .venv/.docs
	scripts/docs

build: .venv/.dev
	scripts/build

bench: .venv/.demo
	for part in speed never-slower overhead latency replayed methods; do .venv/bin/foretoken bench $$part || exit; done

clean:
	rm -rf .venv build

.venv/.demo: $(INPUTS)
	scripts/setup
	@touch $@

.venv/.dev: $(INPUTS)
	scripts/setup dev
	@touch $@

.venv/.docs: $(INPUTS)
	scripts/setup docs
	@touch $@
