#!/bin/bash
# Makes the root of a small demonstration image: the distribution's static busybox and the files a shell
# expects.
#   build.sh OUTDIR     OUTDIR must not exist yet
set -euo pipefail
export LC_ALL=C
umask 022

out=$1
busybox=/bin/busybox
if ! [ -x "$busybox" ] || ldd "$busybox" >/dev/null 2>&1; then
	echo "build.sh: no static $busybox: apt-get install busybox-static" >&2
	exit 1
fi

mkdir -p "$out"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,run,etc,home,mnt,var/log}
mkdir -m 1777 "$out"/{tmp,var/tmp}
mkdir -m 700 "$out/root"
install -m 755 "$busybox" "$out/bin/busybox"
"$busybox" --list-full | while read -r applet; do
	mkdir -p "$out/$(dirname "$applet")"
	[ -e "$out/$applet" ] || ln -s /bin/busybox "$out/$applet"
done

cat >"$out/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
END
cat >"$out/etc/group" <<'END'
root:x:0:
nogroup:x:65534:
END
cat >"$out/etc/profile" <<'END'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
END
printf 'NAME=husk-demo\nID=husk-demo\nPRETTY_NAME="husk demo (busybox)"\n' >"$out/etc/os-release"
