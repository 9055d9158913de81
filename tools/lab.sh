#!/usr/bin/env bash
# JupyterLab on nbs/. Notebooks run in their own folder, so relative places are made absolute for them.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(pwd)

export SMARTROUTER_HOME="${SMARTROUTER_HOME:-var}"
[[ $SMARTROUTER_HOME == /* ]] || SMARTROUTER_HOME="$root/$SMARTROUTER_HOME"
export SMARTROUTER_WAREHOUSE="${SMARTROUTER_WAREHOUSE:-duckdb:///$SMARTROUTER_HOME/warehouse.duckdb}"
if [[ $SMARTROUTER_WAREHOUSE =~ ^duckdb:///[^/] ]]; then
    SMARTROUTER_WAREHOUSE="duckdb:///$root/${SMARTROUTER_WAREHOUSE#duckdb:///}"
fi
export SMARTROUTER_PARAMS="${SMARTROUTER_PARAMS:-$root/params}"

options=(--config tools/jupyter_server_config.py)
[ "$(id -u)" -ne 0 ] || options+=(--allow-root)
exec .venv/bin/jupyter lab "${options[@]}" nbs "$@"
