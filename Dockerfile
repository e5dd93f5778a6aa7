# The image for NVIDIA GPUs; for others --build-arg ACCELERATOR=tpu or cpu.
#
#   docker build --tag coin_jax .
#   docker run --rm --gpus all --ipc=host --volume "$PWD/runs:/coin_jax/runs" coin_jax \
#       --config configs/quickstart.py
#
# CUDA comes with JAX's wheels; the host brings the driver (580 or newer for CUDA 13).
FROM python:3.12-slim
ARG ACCELERATOR=cuda13
WORKDIR /coin_jax

# Before the code, so that a change of the code installs nothing anew.
COPY requirements.txt ./
RUN case "$ACCELERATOR" in cuda13|tpu) package="jax[$ACCELERATOR]" ;; cpu) package=jax ;; \
      *) echo "ACCELERATOR=$ACCELERATOR: allowed are cuda13, tpu and cpu" >&2; exit 2 ;; esac \
    && pip install --no-cache-dir -r requirements.txt "$package"

COPY pyproject.toml README.md ./
COPY suites suites
COPY configs configs
COPY coin_jax coin_jax

# Any user may run it (docker run --user), so what is cached goes where any user may write.
ENV HF_HOME=/tmp/huggingface MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1
# Without a shell between, SIGTERM reaches training itself, which then saves.
ENTRYPOINT ["python", "-m", "coin_jax.train"]
