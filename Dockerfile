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

# GPU image with the engine builder, on the last TensorRT-LLM line that has one. Not the default: name it.
#
#   docker build --target gpu --tag compress-export:gpu .
#   docker run --rm --gpus all --ipc host --ulimit memlock=-1 --ulimit stack=67108864 \
#     -v hf-cache:/cache/huggingface -v "$PWD:/work" compress-export:gpu run MODEL --target 4b --fp8
#
# docs/containers.md says what of this has been built.
FROM nvcr.io/nvidia/tensorrt-llm/release:1.2.1 AS gpu

ENV HF_HOME=/cache/huggingface \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/compress-export
COPY . .
# What the image holds is the constraint: pip may add what is missing and must fail rather than replace
# anything. Two packages that the image may lack need an older release than pip would take. The second
# list proves that nothing was replaced. (`pip list`: `pip freeze` names NVIDIA's own builds by file, not
# by version.)
RUN python3 -m pip list --format=freeze | sort > /tmp/before.txt \
    && grep -E '^[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+$' /tmp/before.txt > /tmp/constraints.txt \
    && { grep -qi '^onnxruntime-genai==' /tmp/before.txt || echo 'onnxruntime-genai==0.14.1' >> /tmp/constraints.txt; } \
    && { grep -qi '^pyarrow==' /tmp/before.txt || echo 'pyarrow==19.0.1' >> /tmp/constraints.txt; } \
    && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --constraint /tmp/constraints.txt . \
    && python3 -m pip list --format=freeze | sort > /tmp/after.txt \
    && test -z "$(comm -23 /tmp/before.txt /tmp/after.txt)" \
    && rm /tmp/before.txt /tmp/after.txt /tmp/constraints.txt

# The base image may have a user with this id already.
RUN { id -u 1000 >/dev/null 2>&1 || useradd --create-home --uid 1000 compress; } \
    && mkdir -p "$HF_HOME" /work /runs \
    && chown -R 1000:1000 /cache /work /runs
USER 1000
VOLUME ["/cache/huggingface"]
WORKDIR /work
ENTRYPOINT ["compress-export"]
CMD ["--help"]
