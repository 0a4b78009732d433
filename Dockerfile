# robusttrain on a CPU, as a normal user. `evaluate` is what runs where no other command is named.
#
#   docker build --tag robusttrain .
#   docker run --rm robusttrain list
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" robusttrain train
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" robusttrain
#
# PyPI's torch for x86 brings CUDA's libraries, which a CPU does not need. With the index of the
# CPU wheels, which PyTorch's installation page names, the image is gigabytes smaller:
#
#   docker build --build-arg PIP_EXTRA_INDEX_URL=ADDRESS --tag robusttrain .
#
# `.ci/image` builds and tries the image. It reads the steps from here, also where there is no
# docker: so keep to ARG, FROM, WORKDIR, COPY, RUN, ENV, USER, ENTRYPOINT and CMD, each on one line.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
ARG PIP_INDEX_URL
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY robusttrain ./robusttrain
COPY configs ./configs
RUN python -m pip wheel --quiet --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY --from=wheel /wheels /wheels
RUN python -m pip install --quiet --no-cache-dir /wheels/*.whl
RUN useradd --create-home robusttrain && mkdir --mode 1777 /work
# Some user without a home folder, as `docker run --user` names one, can write here.
ENV MPLCONFIGDIR=/tmp/matplotlib
USER robusttrain
WORKDIR /work
ENTRYPOINT ["robusttrain"]
CMD ["evaluate"]
