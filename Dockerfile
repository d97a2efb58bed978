# CPU image for planning, small models and tests:
#
#   docker build --target cpu --tag compress-export:cpu .
#   docker run --rm compress-export:cpu plan llama3.1-8b --target 4b --fp8
#   docker run --rm -v hf-cache:/cache/huggingface -v "$PWD:/work" compress-export:cpu run ...
#   docker run --rm --entrypoint python compress-export:cpu -m pytest /opt/compress-export/tests/unit

FROM python:3.11-slim AS cpu

ENV HF_HOME=/cache/huggingface \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/compress-export
COPY constraints/default.txt constraints/
# torch first and alone. The default index's build brings gigabytes of CUDA libraries; give PyTorch's
# CPU index as TORCH_INDEX_URL for a small image.
ARG TORCH_INDEX_URL=
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} \
      --constraint constraints/default.txt torch==2.13.0
COPY . .
RUN pip install --constraint constraints/default.txt --editable '.[dev]'

RUN useradd --create-home --uid 1000 compress \
    && mkdir -p "$HF_HOME" /work \
    && chown -R compress:compress /cache /work
USER compress
VOLUME ["/cache/huggingface"]
WORKDIR /work
ENTRYPOINT ["compress-export"]
CMD ["--help"]
