#!/usr/bin/env bash
# Installs deepcovid-edge on an NVIDIA Jetson Orin or Thor, into a virtual environment that sees the
# TensorRT of JetPack. No PyTorch. Running it again does nothing more. `install.sh --help`.
#
# Exit codes: 0 done, 1 a step failed, 2 usage, 5 this JetPack or machine is not supported,
# 6 something is not there.
set -euo pipefail
umask 022 # the account of the cart reads what root installs
export ORT_DISABLE_TELEMETRY=1 # read by onnxruntime while it is imported

readonly UNSUPPORTED=5 NOT_THERE=6 USAGE=2
readonly KNOWN="JetPack 6.1 or 6.2 on Orin, 7.0 or 7.1 on Thor, 7.2 on both"

usage() {
    cat <<'EOF'
Usage: install.sh [OPTIONS]

Installs deepcovid-edge for JetPack 6.1, 6.2 (Orin), 7.0, 7.1 (Thor) and 7.2 (both) into a virtual
environment that sees JetPack's tensorrt, and builds pycuda with JetPack's CUDA.

  --venv DIR            The environment.                        [~/deepcovid-edge]
  --wheel FILE          The deepcovid_edge wheel.               [that in --wheels, else this checkout]
  --wheels DIR          Without a network: every package comes from the wheels in DIR.
  --onnxruntime KIND    cpu or gpu.                             [cpu]
  --jetson-index URL    Address of the Jetson AI Lab package index, which has onnxruntime-gpu for
                        JetPack; asked for that package alone.  [$DEEPCOVID_EDGE_JETSON_INDEX]
  --cart                The cart too, as services of systemd; run it with sudo. The environment
                        is /opt/deepcovid-edge then, or another one outside of /home.
  --kiosk, --no-kiosk   With --cart: the page on the board's own screen (packages cage and cog). [as it was]
  --yes-apt             Let apt-get install what JetPack lacks (with sudo).
  --dry-run             Print what would be run, change nothing.
  --root DIR            Read the release files below DIR, for tests.
  --help                This text.

Exit codes: 0 done, 1 a step failed, 2 usage, 5 unsupported JetPack or machine, 6 something missing.
Example: install.sh --wheel deepcovid_edge-0.1.0-py3-none-any.whl
EOF
}

die() { # CODE SENTENCE
    printf 'Error: %s\n' "$2" >&2
    exit "$1"
}

say() { printf '%s\n' "$*"; }
warn() { printf 'Warning: %s\n' "$*" >&2; }

run() { # COMMAND... printed, and run unless this is a dry run
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    [[ $dry_run == yes ]] || "$@" || die 1 "that command failed: $(printf '%q ' "$@")"
}

venv=""
cart=no kiosk=() extras="dicom,tensorrt"
wheel="" wheels="" root="" onnxruntime=cpu index="${DEEPCOVID_EDGE_JETSON_INDEX:-}"
yes_apt=no dry_run=no

parse_options() {
    while (($#)); do
        case "$1" in
            --help) usage && exit 0 ;;
            --dry-run) dry_run=yes ;;
            --yes-apt) yes_apt=yes ;;
            --cart) cart=yes ;;
            --kiosk | --no-kiosk) kiosk=("$1") ;;
            --venv | --wheel | --wheels | --onnxruntime | --jetson-index | --root)
                [[ $# -ge 2 && -n $2 ]] || die $USAGE "$1: needs a value; see --help"
                case "$1" in
                    --venv) venv=$2 ;;
                    --wheel) wheel=$2 ;;
                    --wheels) wheels=$2 ;;
                    --onnxruntime) onnxruntime=$2 ;;
                    --jetson-index) index=$2 ;;
                    --root) root=${2%/} ;;
                esac
                shift
                ;;
            *) die $USAGE "$1: no such option; see --help" ;;
        esac
        shift
    done
    if [[ -z $venv ]]; then
        venv="${HOME:-}/deepcovid-edge"
        [[ $cart == no ]] || venv=/opt/deepcovid-edge
    fi
    [[ $venv == /* ]] || venv=$PWD/$venv
    [[ $cart == no ]] || extras="dicom,tensorrt,cart"
    if [[ $cart == yes && $venv == @(/home|/root|/run/user|/tmp|/var/tmp)/* ]]; then
        die $USAGE "--venv: got $venv, which the cart's services do not see: choose one such as \
/opt/deepcovid-edge"
    fi
    [[ $cart == yes || ${#kiosk[@]} == 0 ]] || die $USAGE "${kiosk[0]}: needs --cart"
    [[ $cart == no || $dry_run == yes ]] || ((EUID == 0)) ||
        die $USAGE "--cart: needs root: run it with sudo"
    [[ $onnxruntime == cpu || $onnxruntime == gpu ]] ||
        die $USAGE "--onnxruntime: got $onnxruntime, expected cpu or gpu"
    if [[ $onnxruntime == gpu && -z $index && -z $wheels ]]; then
        die $USAGE "--onnxruntime gpu: needs --jetson-index URL (the Jetson AI Lab package index), \
\$DEEPCOVID_EDGE_JETSON_INDEX or --wheels DIR"
    fi
    [[ -z $wheel || $wheel == *.whl ]] || die $USAGE "--wheel: got $wheel, expected a .whl file"
    [[ -z $wheel || -f $wheel ]] || die $NOT_THERE "--wheel: $wheel is not there"
    [[ -z $wheels || -d $wheels ]] || die $NOT_THERE "--wheels: $wheels is not a folder"
}

# --- What machine this is -------------------------------------------------------------------------

package_version() { # PACKAGE -> its version if dpkg has it installed
    local status=$root/var/lib/dpkg/status
    [[ -r $status ]] || return 0
    awk -v package="$1" '
        BEGIN { RS = ""; FS = "\n" }
        {
            named = installed = 0; version = ""
            for (line = 1; line <= NF; line++) {
                if ($line == "Package: " package) named = 1
                if ($line ~ /^Status: .* installed$/) installed = 1
                if ($line ~ /^Version: /) version = substr($line, 10)
            }
            if (named && installed) { print version; exit }
        }' "$status"
}

# First line of /etc/nv_tegra_release, as boards print it:
#   # R36 (release), REVISION: 4.3, GCID: ..., BOARD: generic, EABI: aarch64, DATE: ...
# Version of nvidia-l4t-core, as dpkg has it: 36.4.4-20250616085344 (jetson_stats, pull request 706).
find_l4t() {
    local line=""
    if [[ -r $root/etc/nv_tegra_release ]]; then
        IFS= read -r line <"$root/etc/nv_tegra_release" || true
        if [[ $line =~ R([0-9]+)\ .*REVISION:\ *([0-9]+(\.[0-9]+)*) ]]; then
            say "${BASH_REMATCH[1]}.${BASH_REMATCH[2]}"
            return
        fi
    fi
    line=$(package_version nvidia-l4t-core)
    say "${line%%-*}"
}

# 36.4.0: 6.1; 36.4.2: 6.1 (rev1); 36.4.3: 6.2     rbonghi/jetson_stats, jetson_variables.py
# 36.4.4, 36.4.7: 6.2.1                             the same, issue 791 and pull request 706
# 36.5.0: 6.2.2; 36.5.2: 6.2.3                      the same, pull request 803; jetpack-nixos, 541
# 38.2, 38.2.1: 7.0                                 NVIDIA's JetPack archive, page archive-7.0
# 38.4: 7.1                                         the same, page archive-7.1
# 39.2.0: 7.2; 39.2.1: 7.2.1                        OE4T/meta-tegra, pull requests 2281 and 2339
jetpack_of() { # L4T
    case "$1" in
        36.4 | 36.4.[0-2]) say 6.1 ;;
        36.4.* | 36.5 | 36.5.*) say 6.2 ;;
        38.2 | 38.2.*) say 7.0 ;;
        38.4 | 38.4.*) say 7.1 ;;
        39.2 | 39.2.*) say 7.2 ;;
    esac
}

# The device tree names the chip: nvidia,tegra234 is Orin (jetson-gpio, issue 125), nvidia,tegra264
# is Thor (jetson-gpio, issue 135). Its strings end with NUL.
find_board() {
    local chip
    [[ -r $root/proc/device-tree/compatible ]] || return 0
    while IFS= read -r chip; do
        case "$chip" in
            nvidia,tegra234) say orin && return ;;
            nvidia,tegra264) say thor && return ;;
        esac
    done < <(tr '\0' '\n' <"$root/proc/device-tree/compatible")
}

board_name() {
    if [[ -r $root/proc/device-tree/model ]]; then tr -d '\0' <"$root/proc/device-tree/model"; fi
}

# What each JetPack brings. 6.x: pytorch/TensorRT, pull request 3453. 7.0, 7.1: NVIDIA's JetPack
# archive. 7.2: roboflow/inference, pull request 2478 (read off a device).
expect() { # JETPACK
    case "$1" in
        6.*) want_python=3.10 want_cuda=12.6 want_tensorrt=10.3 ;;
        7.0 | 7.1) want_python=3.12 want_cuda=13.0 want_tensorrt=10.13 ;;
        7.2) want_python=3.12 want_cuda=13.2 want_tensorrt=10.16 ;;
    esac
}

recognise() {
    local model
    l4t=$(find_l4t)
    board=$(find_board)
    model=$(board_name)
    if [[ -z $l4t || -z $board ]]; then
        die $UNSUPPORTED "this is ${model:-$(uname -m)} with L4T ${l4t:-none}, expected $KNOWN; \
elsewhere, from a checkout: pip install '.[cpu]'"
    fi
    jetpack=$(jetpack_of "$l4t")
    case "$jetpack-$board" in
        6.?-orin | 7.[01]-thor | 7.2-orin | 7.2-thor) ;;
        *) die $UNSUPPORTED "L4T $l4t (JetPack ${jetpack:-unknown}) on ${model:-$board} is not \
supported, expected $KNOWN: flash one of these" ;;
    esac
    expect "$jetpack"
    say "JetPack $jetpack (L4T $l4t) on ${model:-$board}"
}

# --- What JetPack has, and lacks ------------------------------------------------------------------

have_tool() { # NAME
    if [[ -n $root ]]; then [[ -x $root/usr/bin/$1 ]]; else command -v "$1" >/dev/null; fi
}

# -s: a tensorrt that pip put into the user's own folder is not JetPack's.
ask_python() { "$python" -s -c "$1" 2>/dev/null || true; }

find_tools() {
    python=$root/usr/bin/python3
    [[ -x $python ]] || die $NOT_THERE "$python is not there: sudo apt-get install python3"
    python_version=$(ask_python 'import sys; print("%d.%d" % sys.version_info[:2])')
    tensorrt=$(ask_python 'import tensorrt; print(tensorrt.__version__)')
    cuda=""
    local nvcc
    nvcc=$([[ -n $root ]] || command -v nvcc || true)
    for place in "${CUDA_ROOT:-}" "$root/usr/local/cuda" "${nvcc%/bin/nvcc}"; do
        if [[ -n $place && -x $place/bin/nvcc ]]; then
            cuda=$place
            break
        fi
    done
    cuda_version=""
    if [[ -n $cuda && $("$cuda/bin/nvcc" --version) =~ release\ ([0-9]+\.[0-9]+) ]]; then
        cuda_version=${BASH_REMATCH[1]}
    fi
    build_cuda=${cuda_version:-$want_cuda} # of pycuda: without nvcc it comes from a wheel
}

builds_pycuda() { [[ -z $wheels ]] || ! compgen -G "$wheels/pycuda-*.whl" >/dev/null; }

list_missing() {
    missing=() packages=()
    local metapackage tensorrt_package=python3-libnvinfer
    metapackage=$(package_version nvidia-jetpack)
    [[ -n $metapackage ]] || tensorrt_package=nvidia-jetpack
    if [[ -z $tensorrt ]]; then
        missing+=("JetPack's tensorrt for $python") && packages+=("$tensorrt_package")
    fi
    if [[ -z $(ask_python 'import ensurepip, venv; print("yes")') ]]; then
        missing+=("venv for $python") && packages+=(python3-venv)
    fi
    builds_pycuda || return 0
    if [[ -z $cuda ]]; then
        missing+=("nvcc, to build pycuda")
        if [[ -n $metapackage ]]; then
            packages+=("cuda-toolkit-${want_cuda/./-}")
        elif [[ -n $tensorrt ]]; then
            packages+=(nvidia-jetpack)
        fi
    fi
    have_tool g++ || { missing+=("g++, to build pycuda") && packages+=(g++); }
    local header='import os, sysconfig as s; '
    header+='os.path.exists(os.path.join(s.get_path("include"), "Python.h")) and print("yes")'
    if [[ -z $(ask_python "$header") ]]; then
        missing+=("Python.h, to build pycuda") && packages+=(python3-dev)
    fi
}

join() { # SEPARATOR ITEM...
    local separator=$1 text=$2
    shift 2
    for item; do text+=$separator$item; done
    say "$text"
}

install_missing() {
    list_missing
    ((${#missing[@]})) || return 0
    if [[ $yes_apt == no ]]; then
        die $NOT_THERE "$(join '; ' "${missing[@]}"): not there: sudo apt-get install \
$(join ' ' "${packages[@]}") (or --yes-apt)"
    fi
    local sudo=()
    ((EUID == 0)) || sudo=(sudo)
    run "${sudo[@]}" apt-get update
    run "${sudo[@]}" apt-get install -y "${packages[@]}"
    [[ $dry_run == no ]] || return 0
    find_tools
    list_missing
    ((${#missing[@]} == 0)) || die $NOT_THERE "$(join '; ' "${missing[@]}"): still not there"
}

warn_of_mixtures() {
    if [[ $python_version != "$want_python" ]]; then
        warn "$python is Python $python_version, JetPack $jetpack has $want_python"
    fi
    if [[ -n $tensorrt && $tensorrt != "$want_tensorrt".* ]]; then
        warn "tensorrt is $tensorrt, JetPack $jetpack has $want_tensorrt"
    fi
    if [[ -n $cuda_version && $cuda_version != "$want_cuda" ]]; then
        warn "$cuda is CUDA $cuda_version, JetPack $jetpack has $want_cuda: pycuda built with \
another CUDA than TensorRT's may not load; CUDA_ROOT=DIR chooses one"
    fi
}

# --- What is installed ----------------------------------------------------------------------------

find_source() { # The wheel, or the checkout that this script lies in, and what identifies it
    local checkout
    checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    if [[ -z $wheel && -n $wheels ]]; then
        wheel=$(compgen -G "$wheels/deepcovid_edge-*.whl" | sort -V | tail -n 1 || true)
        [[ -n $wheel ]] || die $NOT_THERE "--wheels: $wheels has no deepcovid_edge-*.whl: make it \
with pip wheel --no-deps -w DIR . in a checkout, or name it with --wheel"
    fi
    if [[ -n $wheel ]]; then
        source=$(cd "$(dirname "$wheel")" && pwd)/$(basename "$wheel")
        source_id="wheel $(sha256sum <"$wheel" | cut -c 1-16)"
    elif [[ -f $checkout/deepcovid_edge/__init__.py ]]; then
        source=$checkout
        source_id="checkout $(cd "$checkout" && find deepcovid_edge export pyproject.toml -type f \
            ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-16)"
    else
        die $NOT_THERE "no checkout around this script, so say which wheel: --wheel FILE"
    fi
}

plan() { # What the environment depends on: another plan is installed again
    say "jetpack $jetpack"
    say "python $python_version"
    say "tensorrt $tensorrt"
    say "cuda ${cuda_version:-not used}"
    say "onnxruntime $onnxruntime"
    [[ $cart == no ]] || say "with the cart"
    say "deepcovid-edge from $source_id"
}

is_installed() {
    [[ -f $stamp && $(<"$stamp") == "$(plan)" ]] || return 1
    "$venv/bin/python" -c 'import numpy, onnxruntime, pycuda, tensorrt' 2>/dev/null || return 1
    "$venv/bin/deepcovid-edge" --version >/dev/null 2>&1
}

# --system-site-packages, because JetPack's tensorrt is a Debian package of the system's Python.
make_environment() {
    if [[ -e $venv && ! -f $stamp ]] && [[ -n $(ls -A "$venv") ]]; then
        die $USAGE "--venv: $venv is there and was not made by this script: choose another"
    fi
    # An installation that is broken off from here on is known as ours by its stamp, so the stamp
    # stays (`venv --clear` would delete it). It names a Python once the environment is there.
    if ! grep -qsx "python $python_version" "$stamp"; then
        [[ ! -f $stamp ]] ||
            run find "$venv/" -mindepth 1 -maxdepth 1 ! -name "${stamp##*/}" -exec rm -rf {} +
        if [[ $dry_run == no ]]; then
            mkdir -p "$venv"
            printf 'unfinished\n' >"$stamp"
        fi
        run "$python" -m venv --system-site-packages "$venv"
    fi
    [[ $dry_run == yes ]] || printf 'python %s\nunfinished\n' "$python_version" >"$stamp"
}

# JetPack 6: packages that Debian and NVIDIA built for its Python 3.10 know numpy 1 only; pip then
# takes OpenCV 4.11, the last for numpy 1. cuda-bindings must be of the driver's major version.
write_constraints() {
    local lines=("cuda-bindings>=13,<14")
    [[ $jetpack == 7.* ]] || lines=("numpy>=1.26,<2" "cuda-bindings>=12.6,<13")
    say "constraints ($constraints): ${lines[*]}"
    [[ $dry_run == yes ]] || printf '%s\n' "${lines[@]}" >"$constraints"
}

pycuda_cuda() { # The CUDA that pycuda was built with; empty where it is not there or does not load
    "$venv/bin/python" -c \
        'import pycuda.driver as d; print("%d.%d" % d.get_version()[:2])' 2>/dev/null || true
}

in_environment() { # DISTRIBUTION
    compgen -G "$venv/lib/python3*/site-packages/${1//-/_}-*.dist-info" >/dev/null
}

install_packages() {
    local pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
    local from=()
    [[ -z $wheels ]] || from=(--no-index --find-links "$wheels")
    if [[ -n $cuda ]]; then
        say "+ export CUDA_ROOT=$cuda PATH=$cuda/bin:\$PATH"
        export CUDA_ROOT=$cuda PATH=$cuda/bin:$PATH
    fi
    # pip keeps the pycuda that is there, and takes the one that it built once, also where that was
    # with another CUDA: an earlier JetPack's.
    local again=() built
    built=$(pycuda_cuda)
    [[ -z $built || $built == "$build_cuda" ]] || again=(--force-reinstall --no-deps)
    run "${pip[@]}" "${from[@]}" --no-cache-dir -c "$constraints" "${again[@]}" pycuda
    # The two write the same files; a leftover of the other one breaks the one that is wanted.
    local other=onnxruntime known=no
    [[ $onnxruntime == gpu ]] || other="onnxruntime-gpu"
    if in_environment $other; then
        run "$venv/bin/python" -m pip uninstall -y onnxruntime onnxruntime-gpu
    fi
    if [[ $onnxruntime == gpu ]]; then
        local gpu_from=("${from[@]}")
        [[ -n $wheels ]] || gpu_from=(--index-url "$index")
        run "${pip[@]}" "${gpu_from[@]}" --no-deps onnxruntime-gpu
    fi
    ! in_environment deepcovid-edge || known=yes
    run "${pip[@]}" "${from[@]}" -c "$constraints" "${source}[$onnxruntime,$extras]"
    # pip keeps what is there if the version is the same, even if the wheel is another one.
    [[ $known == no ]] || run "${pip[@]}" "${from[@]}" --force-reinstall --no-deps "$source"
}

check_result() { # Whether engines can run with what was installed
    local seen built
    seen=$("$venv/bin/python" -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null || true)
    [[ $seen == "$tensorrt" ]] || die 1 "$venv sees tensorrt ${seen:-none}, JetPack has $tensorrt: \
remove $venv and install again"
    built=$(pycuda_cuda)
    if [[ -z $built ]]; then
        warn "pycuda does not load, so engines cannot run: $venv/bin/python -c 'import pycuda.driver'"
        return 1
    elif [[ $built != "$build_cuda" ]]; then
        warn "pycuda was built with CUDA $built, here is $build_cuda: with --wheels collect the wheels \
on a board with JetPack $jetpack, else choose the CUDA with CUDA_ROOT=DIR; then run this again"
        return 1
    fi
}

main() {
    parse_options "$@"
    stamp=$venv/jetson-install.txt
    constraints=$venv/jetson-constraints.txt
    export PYTHONNOUSERSITE=1 # a package in the user's own folder must not stand in for one here
    recognise
    if ((EUID == 0)) && [[ -n ${SUDO_USER:-} && $cart == no ]]; then
        warn "run with sudo, so $venv will belong to root; it needs no sudo"
    fi
    find_tools
    install_missing
    warn_of_mixtures
    find_source
    local restart=(--restart)
    if is_installed; then
        restart=()
        say "already installed in $venv: nothing to do"
    else
        make_environment
        write_constraints
        install_packages
        # Without its plan in the stamp, the next run checks and installs again.
        if [[ $dry_run == no ]] && check_result; then
            plan >"$stamp"
        fi
    fi
    run "$venv/bin/deepcovid-edge" info
    [[ $cart == no ]] || run "$venv/bin/deepcovid-edge" cart install --gpu "${kiosk[@]}" "${restart[@]}"
    [[ $dry_run == yes ]] || say "done: $venv/bin/deepcovid-edge; test this device with selftest"
}

main "$@"
