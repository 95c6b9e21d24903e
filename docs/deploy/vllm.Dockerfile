# docker build --file docs/deploy/vllm.Dockerfile --tag foretoken-vllm .
# vLLM's own image for GPUs, with Foretoken beside it. Its numba and numpy are those that vLLM wants.
ARG VLLM=v0.32.0
FROM vllm/vllm-openai:${VLLM}
COPY . /src
RUN pip install --no-cache-dir --no-deps /src && rm -r /src
# The loops are compiled once, into the image, and not by each replica.
ENV NUMBA_CACHE_DIR=/opt/foretoken/numba
RUN python3 -c "from foretoken.drafters.ngram import compile_loops; compile_loops(recycle=False)"
