# precompute in a container, for CPUs, and with --gpus all for NVIDIA GPUs.
#
#   docker build -t precompute .
#   docker run --rm -v "$PWD:/data" -u "$(id -u):$(id -g)" precompute extract photos -b tiny -o photos.h5
#
# Arguments of the build:
#   PYTHON=3.13               another Python
#   EXTRAS=timm,hf,parquet    other extras of pyproject.toml; the default is what makes a CPU fast
#   TORCH_INDEX=ADDRESS       the package index of PyTorch's CPU builds, which bring no CUDA libraries
#
# Weights that are downloaded, and networks that OpenVINO has compiled, go to /cache: -v precompute:/cache keeps them.

ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=""
RUN PIP_INDEX_URL="$TORCH_INDEX" pip install --no-cache-dir "torch>=2.6,<3" "torchvision>=0.21,<1"

ARG EXTRAS=openvino
COPY pyproject.toml README.md LICENSE /src/
COPY cache /src/cache
COPY heads /src/heads
COPY precompute /src/precompute
RUN pip install --no-cache-dir "precompute[${EXTRAS}] @ file:///src" \
    && useradd --uid 1000 --create-home precompute \
    && mkdir -m 1777 /cache /data

ENV XDG_CACHE_HOME=/cache
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["precompute"]
CMD ["--help"]
