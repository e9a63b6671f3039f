# docker build -t inseq-attribution-api .
# docker build -t inseq-attribution-api --build-arg TORCH_INDEX=URL .   (torch's index for the CPU alone, or for a CUDA version)
FROM python:3.11-slim

# An index of torch builds, see PyTorch's installation page: the CPU build is a tenth of the default's size, which has CUDA.
ARG TORCH_INDEX

WORKDIR /app
COPY requirements.lock .
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.lock)"; \
    fi && pip install --no-cache-dir -r requirements.lock
COPY . .

# Not root: it needs to write its data and the model cache only.
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
