#!/bin/bash
# Installs Ryzanstein as systemd services, upgrades it, and takes it away again. See README.md beside this file, and
# `install.sh --help`. May be run again at any time: what is there already stays, but for units and software.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'HELP'
install.sh install [OPTION…]     software, users, directories, credentials, settings, units
install.sh uninstall [--purge]   units and software; with --purge also settings, credentials, state and users

  --model-dir DIR        of the model, in new settings (required for a new coordinator)
  --tensor-parallel-size N   ranks, in new settings (default: --workers less --spares)
  --workers N            shard workers on this machine, @0 to @N-1 (default 1)
  --spares N             of these, how many stand by (default 0)
  --device cuda|cpu      what the workers use (default cuda)
  --cpu-threads N        of each worker on CPUs, in new settings (default: processors shared out)
  --role ROLE            all, coordinator or worker: what this machine runs (default all)
  --coordinator HOST:PORT    for workers, in new settings (default 127.0.0.1:50051)
  --no-keys              without API keys and join token
  --tls-cert FILE --tls-key FILE --tls-ca FILE   turn TLS on: this machine's certificate, its key, who signed all of them
  --tls-client-ca FILE   mutual TLS: callers over gRPC show a certificate of this authority
  --python FILE          interpreter, 3.11 or later, that every user can read (default /usr/bin/python3)
  --torch REQUIREMENT    what pip is asked for first (default torch)
  --source PATH          a checkout or a wheel (default: the checkout that this script is in)
  --venv DIR             uses this environment, in which Ryzanstein is installed already, in place of making one
  --prefix DIR           software (default /opt/ryzanstein)
  --root DIR             all paths are below it, and systemd is not spoken to: for building images
  --start                enables and starts the services
HELP
}

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "error: $*"
    exit 2
}
want_number() { [[ $2 =~ ^[0-9]+$ ]] || fail "$1: '$2' is not a number"; }

parse() {
    action=${1:-}
    case $action in
        install | uninstall) shift ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && exit 2 ;;
    esac
    model_dir='' size='' workers=1 spares=0 device=cuda threads='' role=all address=127.0.0.1:50051 keys=yes
    cert='' key='' ca='' client_ca='' python=/usr/bin/python3 torch=torch source=$here/../.. venv='' prefix=/opt/ryzanstein
    root='' start=no purge=no
    while (($#)); do
        case $1 in
            --no-keys) keys=no ;;
            --start) start=yes ;;
            --purge) purge=yes ;;
            -h | --help) usage && exit 0 ;;
            --*) (($# > 1)) || fail "$1 needs a value" ;;&
            --model-dir) model_dir=$2 && shift ;;
            --tensor-parallel-size) want_number "$1" "$2" && size=$2 && shift ;;
            --workers) want_number "$1" "$2" && workers=$2 && shift ;;
            --spares) want_number "$1" "$2" && spares=$2 && shift ;;
            --device) device=$2 && shift ;;
            --cpu-threads) want_number "$1" "$2" && threads=$2 && shift ;;
            --role) role=$2 && shift ;;
            --coordinator) address=$2 && shift ;;
            --tls-cert) cert=$2 && shift ;;
            --tls-key) key=$2 && shift ;;
            --tls-ca) ca=$2 && shift ;;
            --tls-client-ca) client_ca=$2 && shift ;;
            --python) python=$2 && shift ;;
            --torch) torch=$2 && shift ;;
            --source) source=$2 && shift ;;
            --venv) venv=$2 && shift ;;
            --prefix) prefix=$2 && shift ;;
            --root) root=${2%/} && shift ;;
            *) fail "unknown option $1; see --help" ;;
        esac
        shift
    done
    [[ $device == cuda || $device == cpu ]] || fail "--device: '$device' is neither cuda nor cpu"
    [[ $role == all || $role == coordinator || $role == worker ]] || fail "--role: '$role' is none of all, coordinator, worker"
    [[ -z $cert$key$ca || (-n $cert && -n $key && -n $ca) ]] || fail "--tls-cert, --tls-key and --tls-ca come together"
    [[ $prefix == /* && $prefix != / ]] || fail "--prefix: '$prefix' is not an absolute path"
    [[ -n $size ]] || size=$((workers > spares ? workers - spares : 1))
    [[ $(id -u) == 0 || -n $root ]] || fail "users, units and credentials are root's: run it with sudo, or with --root DIR"
    etc=$root/etc/ryzanstein units=$root/etc/systemd/system
    unit_names=(ryzanstein.target ryzanstein-start-order.service)
    [[ $role == worker ]] || unit_names+=(ryzanstein-coordinator.service)
    [[ $role == coordinator ]] || unit_names+=(ryzanstein-shard-worker@.service)
}

check_first() { # what would be missed only after half of the work
    if [[ $role != worker && -z $model_dir && ! -e $etc/coordinator.toml ]]; then
        fail "--model-dir is needed for a new coordinator"
    fi
    if [[ $role == worker && $keys == yes && ! -e $etc/credentials/join-token ]]; then
        fail "$etc/credentials/join-token is not there: copy the coordinator's, for root alone, or give --no-keys"
    fi
    local file
    for file in "$cert" "$key" "$ca" "$client_ca"; do
        [[ -z $file || -r $file ]] || fail "$file can't be read"
    done
}

# --- software: one environment per release, and a link to the one that services start from

check_python() {
    [[ -x $python ]] || fail "--python: $python is not there"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "--python: $python is older than 3.11"
    local real
    real=$(readlink -f "$python")
    [[ $real != /root/* && $real != /home/* ]] ||
        fail "--python: $real lies in a home directory, where services can't read it; give /usr/bin/python3"
}

release_name() {
    local version digest
    if [[ -f $source ]]; then
        version=$(basename "$source" | cut -d- -f2)
        digest=$(sha256sum <"$source")
    else
        version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$source/pyproject.toml")
        digest=$(cd "$source" && find pyproject.toml protos coordinator shard_worker client -type f \
            ! -path '*/__pycache__/*' ! -name '*.so' -print0 | sort -z | xargs -0 sha256sum | sha256sum)
    fi
    printf '%s-%s' "$version" "${digest:0:12}"
}

make_release() {
    local extras='coordinator,worker'
    [[ $role == coordinator ]] && extras=coordinator
    [[ $role == worker ]] && extras=worker
    [[ -e $source ]] || fail "--source: $source is not there"
    release=$prefix/releases/$(release_name)
    if [[ -e $root$release/complete ]]; then
        say "software: $release is there"
        return
    fi
    say "software: $release"
    rm -rf "$root$release"
    mkdir -p "$root$prefix/releases"
    "$python" -m venv "$root$release" || fail "$python can't make an environment; on Debian: apt install python3-venv"
    local pip=("$root$release/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir)
    if [[ $extras == *worker* ]]; then "${pip[@]}" "$torch"; fi
    "${pip[@]}" "ryzanstein[$extras] @ file://$(readlink -f "$source")"
    # Made below --root, it is to run without it.
    [[ -z $root ]] || grep -rlIZ "$root$release" "$root$release/bin" "$root$release/pyvenv.cfg" |
        xargs -0r sed -i "s|$root$release|$release|g"
    chmod -R go+rX "$root$release"
    touch "$root$release/complete"
}

install_software() {
    if [[ -n $venv ]]; then
        [[ -x $root$venv/bin/ryzanstein ]] || fail "--venv: $venv/bin/ryzanstein is not there"
        release=$venv
    else
        check_python
        make_release
    fi
    install -d -m 755 "$root$prefix"
    # In one step: a service that starts now finds the one or the other.
    ln -sfn "$release" "$root$prefix/current.new"
    mv -fT "$root$prefix/current.new" "$root$prefix/current"
    sed "1s|.*|#!$prefix/current/bin/python3|" "$here/rolling_restart.py" >"$root$prefix/rolling_restart.py"
    chmod 755 "$root$prefix/rolling_restart.py"
}

# --- users, directories, credentials, settings

make_users() {
    install -d -m 755 "$root/etc"
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers ${root:+--root="$root"} "$here/config/sysusers.conf"
        return
    fi
    local user
    for user in ryzanstein ryzanstein-worker; do
        id "$user" >/dev/null 2>&1 ||
            useradd ${root:+--root "$root"} --system --user-group --no-create-home --shell /usr/sbin/nologin "$user"
    done
}

secret() { # FILE TEXT: for root alone; what is there stays. No program sees the text as an argument.
    if [[ ! -e $1 ]]; then
        install -m 600 /dev/null "$1"
        printf '%s\n' "$2" >"$1"
        say "credential: $1 is new"
    fi
}

random() { od -An -vtx1 -N"$1" /dev/urandom | tr -d ' \n'; }

make_credentials() {
    install -d -m 755 "$etc"
    install -d -m 700 "$etc/credentials"
    if [[ $keys == yes ]]; then
        if [[ $role != worker ]]; then
            secret "$etc/credentials/api-keys" \
                "$(printf '%s operator inference,operations\n%s default inference' "$(random 16)" "$(random 16)")"
        fi
        secret "$etc/credentials/join-token" "$(random 32)"
    fi
    if [[ -n $cert ]]; then
        install -m 600 "$cert" "$etc/credentials/tls-cert.pem"
        install -m 600 "$key" "$etc/credentials/tls-key.pem"
        install -m 600 "$ca" "$etc/credentials/tls-ca.pem"
    fi
    [[ -z $client_ca ]] || install -m 600 "$client_ca" "$etc/credentials/tls-client-ca.pem"
}

settings() { # NAME: from the example; what is there stays
    if [[ -e $etc/$1 ]]; then
        say "settings: $etc/$1 stays as it is"
        return
    fi
    sed -e "s|@MODEL_DIR@|$model_dir|" -e "s|@TENSOR_PARALLEL_SIZE@|$size|" -e "s|@SPARES@|$spares|" \
        -e "s|@COORDINATOR@|$address|" -e "s|@CPU_THREADS@|$threads|" "$here/config/$1" >"$etc/$1"
    say "settings: $etc/$1 is new"
}

make_settings() {
    if [[ $role != worker ]]; then
        settings coordinator.toml
    fi
    if [[ $role != coordinator ]]; then
        local processors
        processors=$(nproc)
        [[ -n $threads ]] || threads=$((processors > workers && workers > 0 ? processors / workers : 1))
        settings shard-worker.toml
        if [[ ! -e $etc/shard-worker.env ]]; then
            printf '# RYZANSTEIN_<FLAG>=… for all workers of this machine; shard-worker@N.env is for one.\n' >"$etc/shard-worker.env"
            # Without it, worker N is on cuda:N.
            [[ $device == cuda ]] || printf 'RYZANSTEIN_DEVICE=cpu\n' >>"$etc/shard-worker.env"
        fi
    fi
}

check_model() {
    [[ -z $root && -n $model_dir && $role != worker ]] || return 0
    local user
    for user in ryzanstein ryzanstein-worker; do
        setpriv --reuid "$user" --regid "$user" --clear-groups test -r "$model_dir/config.json" 2>/dev/null ||
            say "warning: user $user can't read $model_dir/config.json; the services will say so and not start"
    done
}

# --- units

drop_in() { # UNIT NAME FILE
    install -d -m 755 "$units/$1.d"
    install -m 644 "$here/drop-ins/$3" "$units/$1.d/$2"
}

install_units() {
    local unit
    install -d -m 755 "$units"
    for unit in "${unit_names[@]}"; do
        sed "s|/opt/ryzanstein|$prefix|g" "$here/units/$unit" >"$units/$unit.new"
        chmod 644 "$units/$unit.new"
        mv -f "$units/$unit.new" "$units/$unit"
    done
    local coordinator=ryzanstein-coordinator.service worker=ryzanstein-shard-worker@.service
    for unit in "${unit_names[@]:2}"; do
        if [[ $keys == yes ]]; then
            [[ $unit == "$coordinator" ]] && drop_in "$unit" 10-keys.conf keys-coordinator.conf
            [[ $unit == "$worker" ]] && drop_in "$unit" 10-keys.conf keys-worker.conf
        else
            rm -f "$units/$unit.d/10-keys.conf"
        fi
        [[ ! -e $etc/credentials/tls-cert.pem ]] || drop_in "$unit" 20-tls.conf tls.conf
        [[ ! -e $etc/credentials/tls-client-ca.pem ]] || drop_in "$unit" 21-tls-client-ca.conf tls-client-ca.conf
    done
}

enable_units() {
    local names=(ryzanstein.target) number
    [[ $role == worker ]] || names+=(ryzanstein-coordinator.service)
    if [[ $role != coordinator ]]; then
        for ((number = 0; number < workers; number++)); do names+=("ryzanstein-shard-worker@$number.service"); done
    fi
    if [[ -n $root ]]; then
        systemctl --root="$root" --quiet enable "${names[@]}"
        return
    fi
    systemctl daemon-reload
    if [[ $start == yes ]]; then
        systemctl --quiet enable "${names[@]}"
        systemctl start ryzanstein.target
    else
        say "next: systemctl enable --now ${names[*]}"
    fi
}

install_all() {
    check_first
    install_software
    make_users
    make_credentials
    make_settings
    check_model
    install_units
    enable_units
    say "installed: $release"
}

uninstall_all() {
    if [[ -z $root ]]; then
        systemctl stop ryzanstein.target 'ryzanstein-shard-worker@*.service' ryzanstein-coordinator.service 2>/dev/null || true
        systemctl --quiet disable ryzanstein.target ryzanstein-coordinator.service ryzanstein-shard-worker@.service 2>/dev/null || true
        systemctl reset-failed 'ryzanstein*' 2>/dev/null || true
    fi
    rm -rf "$units"/ryzanstein.target "$units"/ryzanstein.target.wants \
        "$units"/multi-user.target.wants/ryzanstein.target "$units"/ryzanstein-start-order.service \
        "$units"/ryzanstein-coordinator.service{,.d} "$units"/ryzanstein-shard-worker@.service{,.d}
    rm -rf "$root$prefix/releases" "$root$prefix/current" "$root$prefix/rolling_restart.py"
    rmdir --ignore-fail-on-non-empty "$root$prefix" 2>/dev/null || true
    if [[ $purge == yes ]]; then
        rm -rf "$etc" "$root/var/lib/ryzanstein"
        local user
        for user in ryzanstein ryzanstein-worker; do
            userdel ${root:+--root "$root"} "$user" 2>/dev/null || true
        done
    fi
    [[ -n $root ]] || systemctl daemon-reload
    say "uninstalled"
}

parse "$@"
if [[ $action == install ]]; then install_all; else uninstall_all; fi
