#!/bin/bash
# boot.sh DIR SOURCE=TARGET…: a real systemd as process 1 of private pid, mount, cgroup, uts and ipc namespaces, over a
# throw-away overlay of this machine's files, with each SOURCE mounted at TARGET, read-only. DIR/boot.log is what it says;
# DIR is /run/test inside. Ends when it is killed, and leaves nothing behind. The network is this machine's, so that
# clients need nothing special.
set -eu
D=$1
shift
N=ryzanstein-test.$$
C=/sys/fs/cgroup
if [ -e $C/cgroup.controllers ]; then H=unified; else H=$(cd $C && for h in systemd memory pids cpu cpuacct devices freezer blkio unified; do if mountpoint -q $h; then echo $h; fi; done); fi
at() { if [ -e $C/cgroup.controllers ]; then echo $C/$N; else echo "$C/$1/$N"; fi; }
for h in $H; do mkdir -p "$(at "$h")"; done
INNER=
down() {
    if [ -n "$INNER" ]; then kill -KILL "$INNER" 2>/dev/null || :; wait "$INNER" 2>/dev/null || :; fi
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        left=
        for h in $H; do
            find "$(at "$h")" -depth -type d -exec rmdir {} \; 2>/dev/null || :
            if [ -e "$(at "$h")" ]; then left=1; fi
        done
        if [ -z "$left" ]; then return; fi
        sleep 0.1
    done
}
trap down EXIT
trap 'exit 0' TERM INT
(
    for h in $H; do echo $BASHPID >"$(at "$h")/cgroup.procs"; done
    # shellcheck disable=SC2016 # it is the inner shell that expands
    exec unshare --pid --fork --kill-child --mount --cgroup --uts --ipc --propagation private bash -euc '
        D=$1 H=$2 R=$D/t/root
        shift 2
        mount -t tmpfs t "$D/t"
        mkdir "$D"/t/up "$D"/t/work "$R"
        mount -t overlay o -o "lowerdir=/,upperdir=$D/t/up,workdir=$D/t/work" "$R"
        mount -t proc p "$R/proc"
        mount --bind "$R/proc/sys" "$R/proc/sys"
        mount -o remount,bind,ro "$R/proc/sys"
        mount -t tmpfs t "$R/sys"
        mkdir -p "$R/sys/fs/cgroup"
        cd "$R/sys/fs/cgroup"
        if [ "$H" = unified ]; then
            mount -t cgroup2 c .
        else
            for h in $H; do
                mkdir "$h"
                case $h in
                    systemd) mount -t cgroup -o none,name=systemd c "$h" ;;
                    unified) mount -t cgroup2 c "$h" ;;
                    *) mount -t cgroup -o "$h" c "$h" ;;
                esac
            done
        fi
        cd /
        mount -o remount,ro "$R/sys"
        mount --rbind /dev "$R/dev"
        mount -t tmpfs t "$R/run"
        mount -t tmpfs -o mode=1777 t "$R/tmp"
        mkdir "$R/run/test"
        mount --bind "$D" "$R/run/test"
        for pair in "$@"; do
            mkdir -p "$R/${pair#*=}"
            mount --bind "${pair%%=*}" "$R/${pair#*=}"
            mount -o remount,bind,ro "$R/${pair#*=}"
        done
        hostname ryzanstein-test
        printf "[Unit]\nRequires=dbus.socket\nAfter=dbus.socket\nAllowIsolate=yes\n" >"$R/etc/systemd/system/booted.target"
        # Not by chroot alone: whoever is in one can make no user namespace, which PrivateUsers= wants. And mounts are
        # shared, as on every machine: a credential is one, made in a namespace of its own.
        mkdir -p "$R/run/before"
        cd "$R"
        pivot_root . run/before
        exec chroot . env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /bin/sh -c \
            "umount -l /run/before; mount --make-rshared /; exec /usr/lib/systemd/systemd --unit=booted.target --show-status=no"
    ' bash "$D" "$H" "$@"
) >"$D/boot.log" 2>&1 &
INNER=$!
echo "$INNER" >"$D/pid"
wait "$INNER"
