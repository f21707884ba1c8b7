#!/bin/sh
# Installs the tools of tests/integrations beside .venv, not into it, and runs the tests: some of them would bring
# other versions of what grit-mlx itself is tested with.
set -eu
cd "$(dirname "$0")/.."
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ ! -e .venv-integrations/installed ] || [ tests/integrations/requirements.txt -nt .venv-integrations/installed ]; then
    rm -rf .venv-integrations
    .venv/bin/python -m venv --without-pip .venv-integrations
    added=$(.venv-integrations/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # What is in .venv is there as well, editable installs included.
    printf 'import site; site.addsitedir(%s)\n' "'$site'" >"$added/base.pth"
    .venv-integrations/bin/python -m pip install --quiet --requirement tests/integrations/requirements.txt
    : >.venv-integrations/installed
fi
# Nothing is sent anywhere: the tools' own reports of use are off.
export GRIT_REQUIRE_INTEGRATIONS=1 HAYSTACK_TELEMETRY_ENABLED=False ANONYMIZED_TELEMETRY=False HF_HUB_OFFLINE=1
exec .venv-integrations/bin/python -m pytest tests/integrations -o asyncio_mode=auto -W ignore "$@"
