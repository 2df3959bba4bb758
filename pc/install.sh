#!/usr/bin/env bash
# Installs the cart on a PC with Debian or Ubuntu: deepcovid-edge in an environment of its own, and
# its services of systemd. Running it again updates both. `install.sh --help`. A Jetson has
# jetson/install.sh --cart.
#
# Exit codes: 0 done, 1 a step failed, 2 usage, 6 something is not there.
set -euo pipefail
umask 022 # the account of the cart reads what root installs

readonly NOT_THERE=6 USAGE=2 link=/usr/local/bin/deepcovid-edge

usage() {
    cat <<'EOF'
Usage: install.sh [OPTIONS]

Installs deepcovid-edge into an environment and the cart as services of systemd (`cart install`).

  --venv DIR       The environment; the services see nothing below /home.  [/opt/deepcovid-edge]
  --wheel FILE     The deepcovid_edge wheel.     [that in --wheels, else the checkout around this]
  --wheels DIR     Without a network: every package comes from the wheels in DIR.
  --gpu, --no-gpu  ONNX Runtime for NVIDIA GPUs, and the GPU's devices for the assessor. [as it was]
  --kiosk, --no-kiosk
                   Show the page on this machine's own screen (packages cage and cog).   [as it was]
  --no-start       Install, but do not start the cart.
  --dry-run        Print what would be run, change nothing.
  --help           This text.

Exit codes: 0 done, 1 a step failed, 2 usage, 6 something missing.
Example: sudo pc/install.sh --wheel deepcovid_edge-0.1.0-py3-none-any.whl
EOF
}

die() { # CODE SENTENCE
    printf 'Error: %s\n' "$2" >&2
    exit "$1"
}

run() { # COMMAND... printed, and run unless this is a dry run
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    [[ $dry_run == yes ]] || "$@" || die 1 "that command failed: $(printf '%q ' "$@")"
}

venv=/opt/deepcovid-edge wheel="" wheels="" runtime="" dry_run=no
cart=()

parse_options() {
    while (($#)); do
        case "$1" in
            --help) usage && exit 0 ;;
            --dry-run) dry_run=yes ;;
            --gpu) runtime=gpu && cart+=("$1") ;;
            --no-gpu) runtime=cpu && cart+=("$1") ;;
            --kiosk | --no-kiosk | --no-start) cart+=("$1") ;;
            --venv | --wheel | --wheels)
                [[ $# -ge 2 && -n $2 ]] || die $USAGE "$1: needs a value; see --help"
                case "$1" in
                    --venv) venv=$2 ;;
                    --wheel) wheel=$2 ;;
                    --wheels) wheels=$2 ;;
                esac
                shift
                ;;
            *) die $USAGE "$1: no such option; see --help" ;;
        esac
        shift
    done
    [[ $venv == /* ]] || die $USAGE "--venv: got $venv, expected an absolute path"
    case "$venv/" in
        /home/* | /root/* | /tmp/* | /var/tmp/* | /run/user/*)
            die $USAGE "--venv: got $venv, which the services do not see: choose one such as /opt/deepcovid-edge"
            ;;
    esac
    [[ -z $wheel || -f $wheel ]] || die $NOT_THERE "--wheel: $wheel is not there"
    [[ -z $wheels || -d $wheels ]] || die $NOT_THERE "--wheels: $wheels is not a folder"
}

check_machine() {
    local lacking=()
    command -v python3 >/dev/null || die $NOT_THERE "python3 is not there: apt-get install python3-venv"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die $NOT_THERE "python3 is $(python3 -V), expected 3.10 or newer"
    python3 -c 'import ensurepip, venv' 2>/dev/null || lacking+=(python3-venv)
    command -v systemctl >/dev/null || lacking+=(systemd)
    if [[ " ${cart[*]} " == *" --kiosk "* ]]; then
        command -v cage >/dev/null || lacking+=(cage)
        command -v cog >/dev/null || lacking+=(cog)
    fi
    ((${#lacking[@]} == 0)) || die $NOT_THERE "not there: sudo apt-get install ${lacking[*]}"
    [[ $dry_run == yes ]] || ((EUID == 0)) || die $USAGE "needs root: run it with sudo, or with --dry-run"
}

find_source() { # The wheel, or the checkout that this script lies in
    local checkout
    checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    if [[ -z $wheel && -n $wheels ]]; then
        wheel=$(compgen -G "$wheels/deepcovid_edge-*.whl" | sort -V | tail -n 1 || true)
        [[ -n $wheel ]] || die $NOT_THERE "--wheels: $wheels has no deepcovid_edge-*.whl"
    fi
    if [[ -n $wheel ]]; then
        source=$(realpath "$wheel")
    elif [[ -f $checkout/deepcovid_edge/__init__.py ]]; then
        source=$checkout
    else
        die $NOT_THERE "no checkout around this script, so say which wheel: --wheel FILE"
    fi
}

in_environment() { # DISTRIBUTION
    compgen -G "$venv/lib/python3*/site-packages/${1//-/_}-*.dist-info" >/dev/null
}

find_runtime() { # As chosen, else as it was; `other` is the one that writes the same files
    if [[ -z $runtime ]]; then
        runtime=cpu
        ! in_environment onnxruntime-gpu || runtime=gpu
    fi
    other=onnxruntime-gpu
    [[ $runtime == cpu ]] || other=onnxruntime
}

main() {
    parse_options "$@"
    check_machine
    find_source
    find_runtime
    local from=() pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
    [[ -z $wheels ]] || from=(--no-index --find-links "$wheels")
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then # not there, or broken off
        local upgrade=() # for another Python of the system; it makes pip too, and deletes nothing
        [[ ! -f $venv/pyvenv.cfg ]] || upgrade=(--upgrade)
        run python3 -m venv "${upgrade[@]}" "$venv"
    fi
    # A leftover of the other one breaks the one that is wanted.
    if in_environment "$other"; then
        run "$venv/bin/python" -m pip uninstall -y onnxruntime onnxruntime-gpu
    fi
    run "${pip[@]}" "${from[@]}" "${source}[$runtime,dicom,cart]"
    # pip keeps what is there if the version is the same, even if the wheel is another one.
    run "${pip[@]}" "${from[@]}" --force-reinstall --no-deps "$source"
    # A place that sudo searches, so that the command needs no path.
    [[ -e $link && ! -L $link ]] || run ln -sfn "$venv/bin/deepcovid-edge" "$link"
    run "$venv/bin/deepcovid-edge" cart install --restart "${cart[@]}"
}

main "$@"
