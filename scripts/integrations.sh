#!/bin/sh
# Installs the tools of tests/integrations beside .venv, not into it, and runs the tests: some of them would bring
# other versions of what grit-mlx itself is tested with. Clients for Node are tested where there is npm.
set -eu
cd "$(dirname "$0")/.."
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
wanted=tests/integrations/requirements.txt
node=tests/integrations/node/package.json
if [ ! -e .venv-integrations/installed ] || [ $wanted -nt .venv-integrations/installed ] || [ $node -nt .venv-integrations/installed ]; then
    rm -rf .venv-integrations
    .venv/bin/python -m venv --without-pip .venv-integrations
    added=$(.venv-integrations/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # What is in .venv is there as well, editable installs included.
    printf 'import site; site.addsitedir(%s)\n' "'$site'" >"$added/base.pth"
    .venv-integrations/bin/python -m pip install --quiet --requirement $wanted
    if command -v npm >/dev/null; then
        mkdir .venv-integrations/node
        cp $node .venv-integrations/node
        # npm itself would try again for many minutes where it reaches nobody.
        npm install --prefix .venv-integrations/node --no-fund --no-audit --loglevel=error \
            --fetch-retries=1 --fetch-retry-mintimeout=1000 --fetch-retry-maxtimeout=5000 --fetch-timeout=30000 ||
            echo 'The packages for Node could not be installed: their test is left out.'
    fi
    : >.venv-integrations/installed
fi
# Nothing is sent anywhere: the tools' own reports of use are off.
export GRIT_REQUIRE_INTEGRATIONS=1 HAYSTACK_TELEMETRY_ENABLED=False ANONYMIZED_TELEMETRY=False HF_HUB_OFFLINE=1
export LITELLM_LOCAL_MODEL_COST_MAP=True
exec .venv-integrations/bin/python -m pytest tests/integrations -o asyncio_mode=auto -W ignore "$@"
