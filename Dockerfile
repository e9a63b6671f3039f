# docker build -t inseq-attribution-api .
# docker build -t inseq-attribution-api --build-arg TORCH_INDEX=URL .   (torch's index for the CPU alone, or for a CUDA version)
FROM python:3.11-slim

# An index of torch builds, see PyTorch's installation page: the CPU build is a tenth of the default's size, which has CUDA.
ARG TORCH_INDEX

WORKDIR /app
COPY requirements.lock requirements-torch.lock ./
# As in the Makefile: every file has a locked hash, and torch comes last, from the index for its processor or CUDA version.
RUN pip install --no-cache-dir --require-hashes --no-deps -r requirements.lock && \
    pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r requirements-torch.lock
COPY . .

# Not root. It writes its data, the model cache and temporary files only, so the root may be read-only:
# docker run --read-only --tmpfs /tmp -v attribution-data:/data ...
RUN useradd --system --create-home --uid 10001 api && mkdir /data && chown api /data
USER api
ENV INSEQ_API_DATA_DIR=/data INSEQ_API_HOST=0.0.0.0 HF_HOME=/data/huggingface PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 8000
# With a host that the server answers to: INSEQ_API_ALLOWED_HOSTS may leave out 127.0.0.1.
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import os, urllib.request as u; host = (os.environ.get('INSEQ_API_ALLOWED_HOSTS') or '127.0.0.1').split(',')[0].strip(); u.urlopen(u.Request('http://127.0.0.1:8000/health/ready', headers={'Host': host}), timeout=4)"]
# SIGTERM: no new jobs, a grace period for running ones, the others are put back.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "main.py"]
