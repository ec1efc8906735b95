# An image that runs compiled modules (and, with a linker, compiles them):
#
#   docker build -t tensorwright .
#   docker run --rm -v "$PWD:/models" tensorwright run model.twm
#   docker run --rm -v "$PWD:/models" tensorwright bench model.twm
#
# The linker of the second stage is what `compile` needs; without it modules run all the same:
#
#   docker build --build-arg PACKAGES= -t tensorwright-runtime .

FROM python:3.12 AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG PACKAGES="gcc libc6-dev"
RUN if [ -n "$PACKAGES" ]; then \
        apt-get update && apt-get install --yes --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl && rm -r /wheels && useradd --create-home tensorwright
USER tensorwright
WORKDIR /models
ENTRYPOINT ["tensorwright"]
CMD ["--help"]
