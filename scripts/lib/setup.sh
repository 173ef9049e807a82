# shellcheck shell=bash
# What scripts/test and scripts/demo share: finding out what a Debian machine lacks, installing it,
# and the virtual environment in the checkout. Sourced, never run; works from a bare Debian 12
# (Python, gcc, git), as root or with sudo. Calls apt only when something is missing.

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV="$CHECKOUT/.venv"
# Debian keeps nginx, mkfs and losetup where a user's PATH does not look.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

step() { printf '\n==> %s\n' "$*"; }

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root or sudo to run: $*"
    fi
}

# Opening it tells more than its presence: containers often have the node without the right to use it.
require_fuse() {
    [ -c /dev/fuse ] || die "/dev/fuse is missing: this machine cannot mount (load the fuse module, or give the container the device)"
    (exec 9<>/dev/fuse) 2>/dev/null || as_root sh -c 'exec 9<>/dev/fuse' 2>/dev/null ||
        die "/dev/fuse is there but may not be opened: give the container the device and CAP_SYS_ADMIN"
}

system_python() {
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "needs Python 3.11 or newer as python3 (or in \$PYTHON)"
    printf '%s\n' "$python"
}

# The Debian package for each thing that is not there, of those named. What is asked is whether the
# thing works, not whether the package is installed: it may come from elsewhere.
missing_packages() {
    local package python
    python=$(system_python) || return
    for package in "$@"; do
        case $package in
        python3-venv) "$python" -c 'import venv, ensurepip' ;;
        python3-dev) "$python" -c 'import os, sys, sysconfig as s
sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' ;;
        libfuse3-dev) [ -e /usr/include/fuse3/fuse_lowlevel.h ] || pkg-config --exists fuse3 ;;
        fuse3) command -v fusermount3 ;;
        pkg-config) command -v pkg-config ;;
        nginx-light) command -v nginx ;;
        attr) command -v getfattr && command -v setfattr ;;
        qemu-utils) command -v qemu-img && command -v qemu-io ;;
        e2fsprogs) command -v mkfs.ext4 ;;
        util-linux) command -v losetup ;;
        *) command -v "$package" ;; # gcc, curl: called what they are
        esac >/dev/null 2>&1 || printf '%s\n' "$package"
    done
}

# Debian starts a service as soon as it is installed; nobody here asked for a web server on port 80.
without_services() {
    local policy=/usr/sbin/policy-rc.d ours='' status=0
    if [ ! -e "$policy" ]; then
        ours=1
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    "$@" || status=$?
    [ -z "$ours" ] || as_root rm -f "$policy"
    return "$status"
}

install_packages() {
    local list
    list=$(missing_packages "$@") || exit 1
    [ -n "$list" ] || return 0
    step "apt-get install" $list
    command -v apt-get >/dev/null || die "missing, and there is no apt-get to install them:" $list
    as_root apt-get update -qq || die "apt-get update failed"
    # shellcheck disable=SC2086 # one word a package
    without_services as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $list >/dev/null || die "apt-get install failed:" $list
    case " $(echo $list) " in
    # Nor is it wanted after the next boot.
    *" nginx-light "*) ! command -v systemctl >/dev/null || as_root systemctl disable -q nginx || true ;;
    esac
}

# The package itself, editable, in $VENV; $1 is what comes after the dot, as in `[dev]`. What is there
# stays, and is added to, as long as pyproject.toml and the interpreter are those of the last time.
install_venv() {
    local python stamp base
    python=$(system_python) || exit 1
    stamp="$VENV/.cachefs-installed"
    base="$("$python" -c 'import sys; print(sys.version, sys.base_prefix)') $(sha256sum <"$CHECKOUT/pyproject.toml")"
    if [ "$(head -n 1 "$stamp" 2>/dev/null)" != "$base" ]; then
        "$python" -m venv --clear "$VENV" || die "cannot make a virtual environment in $VENV"
        printf '%s\n' "$base" >"$stamp"
    fi
    # Each further line is an installation: "cachefs[dev]" say, of which "cachefs" is a part.
    if ! grep -qxF "cachefs$1" "$stamp" && { [ -n "$1" ] || ! grep -q '^cachefs' "$stamp"; }; then
        step "pip install -e .$1 into .venv"
        "$VENV/bin/python" -m pip install -q --disable-pip-version-check -e "$CHECKOUT$1" ||
            die "pip install failed"
        printf 'cachefs%s\n' "$1" >>"$stamp"
    fi
    PATH="$VENV/bin:$PATH"
}
