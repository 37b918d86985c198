# epizoo as a BIDS App: docker run -v BIDS_DIR:/data:ro -v OUT:/out epizoo /data /out participant
FROM python:3.11-slim AS build
WORKDIR /src
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY epizoo epizoo
COPY tfds_epilepsy tfds_epilepsy
COPY tuning tuning
RUN python -m venv /opt/epizoo && /opt/epizoo/bin/pip install --no-cache-dir ".[preprocessing,dicom]" \
    && find /opt/epizoo -name __pycache__ -prune -exec rm -rf {} +

FROM python:3.11-slim
# What ANTs, NumPy and matplotlib load beside their wheels.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home epizoo
COPY --from=build /opt/epizoo /opt/epizoo
# Nothing is fetched at run time: templates and presets travel in the packages. Caches go where any user may write.
ENV PATH=/opt/epizoo/bin:$PATH HOME=/tmp/home MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba \
    TFDS_DATA_DIR=/tmp/tensorflow_datasets NO_GCE_CHECK=true
USER epizoo
ENTRYPOINT ["epizoo"]
