#!/bin/bash
# Makes root directories in DIR from this machine's programs, and prints the list of images that the suites ask for, in the
# form that the program images reads.
#   images.sh DIR BUSYBOX    BUSYBOX is one that executes the files of its applets
set -euo pipefail

dir=$1 dynamic=$2
mkdir -p "$dir"

# with_libraries ROOT PROGRAM... copies programs with the libraries that they load.
with_libraries() {
	local root=$1 program library
	shift
	for program in "$@"; do
		install -D "$(readlink -f "$program")" "$root$program"
		ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
			install -D "$(readlink -f "$library")" "$root$library"
		done
	done
}

# The pause image's program: it waits for signals and reaps.
mkdir -p "$dir/pause"
cat >"$dir/pause.c" <<-C
	#include <signal.h>
	#include <stdlib.h>
	#include <sys/wait.h>
	#include <unistd.h>
	static void leave(int n) { (void)n; _exit(0); }
	static void reap(int n) { (void)n; while (waitpid(-1, NULL, WNOHANG) > 0) {} }
	int main(void) {
		signal(SIGINT, leave);
		signal(SIGTERM, leave);
		signal(SIGCHLD, reap);
		for (;;)
			pause();
	}
C
gcc -Os -static -s -o "$dir/pause/pause" "$dir/pause.c"

# A program that says which user it has become, with the bit set that makes it root's.
mkdir -p "$dir/setuid"
printf '#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf("Effective uid: %%d\\n", (int)geteuid()); return 0; }\n' >"$dir/setuid.c"
gcc -Os -static -s -o "$dir/setuid/nnp" "$dir/setuid.c"
chmod 4755 "$dir/setuid/nnp"

# busybox: each applet a hard link, so that masking one leaves the others. The static one's shell runs applets without
# executing their files, and would not see a masked one: sh is another one's.
box=$dir/busybox
mkdir -p "$box"/{bin,sbin,etc,tmp,root,home,proc,sys,dev,usr/bin,usr/sbin,var/run,var/log,var/www}
chmod 1777 "$box/tmp"
install "$(command -v busybox)" "$box/bin/busybox"
busybox --list | while read -r applet; do
	[ "$applet" = busybox ] || ln "$box/bin/busybox" "$box/bin/$applet"
done
rm -f "$box/bin/sh" "$box/bin/ash"
with_libraries "$box" "$dynamic" /usr/bin/ipcs /usr/bin/pgrep
mv "$box$dynamic" "$box/bin/sh"
ln -s /bin/env "$box/usr/bin/env"
cat >"$box/etc/passwd" <<-PASSWD
	root:x:0:0:root:/root:/bin/sh
	www-data:x:33:33:www-data:/var/www:/bin/false
	nobody:x:65534:65534:nobody:/home:/bin/false
PASSWD
printf 'root:x:0:\nwww-data:x:33:\nusers:x:100:\nnobody:x:65534:\n' >"$box/etc/group"

# nginx on two ports.
for port in 80 12003; do
	root=$dir/nginx-$port
	mkdir -p "$root"/{etc/nginx,var/log/nginx,var/lib/nginx,var/run,usr/share/nginx/html}
	with_libraries "$root" /usr/sbin/nginx
	echo '<h1>Welcome to nginx!</h1>' >"$root/usr/share/nginx/html/index.html"
	cat >"$root/etc/nginx/nginx.conf" <<-CONF
		daemon off; user nobody; pid /var/run/nginx.pid; error_log stderr; worker_processes 1;
		events {}
		http { access_log /dev/stdout; default_type text/html; server { listen $port; root /usr/share/nginx/html; } }
	CONF
done
mkdir -p "$dir/httpd/www"
echo 'It works!' >"$dir/httpd/www/index.html"

# A user who is in a group that the image alone knows.
mkdir -p "$dir/groups/etc"
{ cat "$box/etc/passwd" && echo 'default-user:x:1000:1000::/home:/bin/sh'; } >"$dir/groups/etc/passwd"
{ cat "$box/etc/group" && printf 'default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n'; } >"$dir/groups/etc/group"

# What containerd's own tests look for: users and groups as busybox has them, and in volumes files that are copied, and an owner.
mkdir -p "$dir/users/etc"
{ cat "$box/etc/passwd" && echo 'daemon:x:1:1:daemon:/usr/sbin:/bin/false'; } >"$dir/users/etc/passwd"
printf 'root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nnogroup:x:65534:\n' >"$dir/users/etc/group"
mkdir -p "$dir/volumes/test_dir" "$dir/volumes/C:/weird_test_dir" "$dir/volumes/:colon_prefixed" "$dir/owned/test_dir"
echo test_content | tee "$dir/volumes/test_dir/test_file" "$dir/volumes/C:/weird_test_dir/weird_test_file" \
	"$dir/volumes/:colon_prefixed/colon_prefixed_file" >/dev/null
chown 65534:65534 "$dir/owned/test_dir"

image() {
	printf '%s\t' "$1"
	local layers=$2
	printf '%s\t%s\n' "$dir/${layers//,/,$dir/}" "$3"
}
for version in 3.8 3.9 3.10 3.10.1 3.10.2; do
	image "pause:$version" pause '{"Entrypoint":["/pause"],"Labels":{"version":"'$version'"}}'
done
e2e="e2e-test-images"
tools=k8s-staging-cri-tools
image $e2e/busybox:1.29-2 busybox '{"Cmd":["sh"]}'
image library/busybox:latest busybox '{"Cmd":["sh"]}'
image $e2e/nginx:1.14-2 busybox,nginx-80 '{"Entrypoint":["/usr/sbin/nginx"],"ExposedPorts":{"80/tcp":{}}}'
image library/nginx:latest busybox,nginx-80 '{"Entrypoint":["/usr/sbin/nginx"],"ExposedPorts":{"80/tcp":{}}}'
image $tools/hostnet-nginx-amd64:latest busybox,nginx-12003 '{"Entrypoint":["/usr/sbin/nginx"]}'
image $e2e/httpd:2.4.39-4 busybox,httpd '{"Cmd":["sh","-c","echo httpd starting; exec busybox httpd -f -v -p 80 -h /www"]}'
image $e2e/nonewprivs:1.3 busybox,setuid '{"Entrypoint":["/nnp"]}'
for name in latest tag:test tag:all digest:latest 1:latest 2:latest 3:latest tags:1 tags:2 tags:3; do
	content=test-$(tr : - <<<"${name/tags:[123]/tags}") # the three tags are of one image
	mkdir -p "$dir/$content"
	echo "$content" >"$dir/$content/content"
	image "$tools/test-image-$name" "busybox,$content" '{"Cmd":["sh"]}'
done
image $tools/test-image-user-uid:latest busybox '{"User":"1002"}'
image $tools/test-image-user-username:latest busybox '{"User":"www-data"}'
image $tools/test-image-user-uid-group:latest busybox '{"User":"1003:users"}'
image $tools/test-image-user-username-group:latest busybox '{"User":"www-data:100"}'
image $tools/test-image-predefined-group:latest busybox,groups '{"User":"1000"}'
image containerd/busybox:1.36 busybox,users '{"Cmd":["sh"]}'
image containerd/volume-copy-up:2.2 busybox,volumes '{"Cmd":["sh"],"Volumes":{"/test_dir":{},"C:/weird_test_dir":{},"/:colon_prefixed":{}}}'
image containerd/volume-ownership:2.1 busybox,users,owned '{"Cmd":["sh"],"Volumes":{"/test_dir":{}}}'
