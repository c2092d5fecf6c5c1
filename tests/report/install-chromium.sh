#!/bin/sh
# Debian's Chromium for the tests of pages, where apt-get and the right to use it are there. Never fails: the tests that
# need it are skipped where it is not.
command -v chromium >/dev/null && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "no Chromium, and no apt-get to install it with: tests of pages will be skipped"
    exit 0
fi
echo "installing chromium for the tests of pages"
export DEBIAN_FRONTEND=noninteractive
quick="-qq -o Acquire::http::Timeout=20 -o Acquire::Retries=1"
# shellcheck disable=SC2086
if ! { apt-get $quick update && apt-get $quick install -y --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1
then
    echo "chromium could not be installed: tests of pages will be skipped"
fi
exit 0
