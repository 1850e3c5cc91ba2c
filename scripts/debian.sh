# shellcheck shell=bash
# Packages of another release of Debian than the machine's own, without touching the machine: apt has sources, lists, a status
# file and a cache of its own, and checks the signatures as it does for everything. Sourced by scripts that need some.

# debian_sources RELEASE DIR fills DIR with the machine's sources of Debian packages, changed to RELEASE. What does not name the
# machine's own release, such as archives of others, is left out: nothing else is needed.
debian_sources() {
	local release=$1 file codename id
	id=$(sed -n 's/^ID=//p' /etc/os-release)
	codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	if [ "$id" != debian ]; then
		echo "packages of Debian $release are only looked for on a Debian: this is $id" >&2
		return 1
	fi
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
		[ -f "$file" ] || continue
		case $file in
		*.sources) # stanzas, of which those stay that name the release
			awk -v RS= -v ORS='\n\n' -v suite="\n(Suites|suites):[^\n]*[ \t]$codename([ \t\n-]|$)" '("\n" $0 "\n") ~ suite' "$file" |
				sed -E "/^[Ss]uites:/s/([ \t])$codename\>/\1$release/g" >"$2/$(basename "$file")"
			;;
		*)
			{ grep -E "^deb .*[ \t]$codename([ \t-]|\$)" "$file" || true; } |
				sed -E "s/([ \t])$codename\>/\1$release/" >"$2/$(basename "$file" .list).list"
			;;
		esac
	done
	[ "$release" != sid ] || without_updates "$2"
}

# without_updates DIR leaves out the suites for updates and security: a release that is still being made has none.
without_updates() {
	local file
	for file in "$1"/*; do
		sed -E -e '/^[Ss]uites:/s/[ \t]sid-[a-z-]+//g' -e '/^deb .*[ \t]sid-/d' "$file" |
			awk -v RS= -v ORS='\n\n' '("\n" $0 "\n") !~ /\n[Ss]uites:[ \t]*\n/' >"$file.new"
		mv "$file.new" "$file"
	done
}

# debian_apt RELEASE DIR makes DIR ready for apt and reads the release's lists. The array debian_apt is then the options of apt-get.
debian_apt() {
	local dir=$2
	mkdir -p "$dir"/{parts,lists/partial,cache/archives/partial} || return
	: >"$dir/status"
	debian_sources "$1" "$dir/parts" || return
	debian_apt=(-q -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$dir/parts" -o "Dir::State::Lists=$dir/lists"
		-o "Dir::State::status=$dir/status" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User= -o Acquire::Languages=none
		-o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
		-o APT::Update::Post-Invoke-Success::= -o APT::Update::Post-Invoke::=)
	# One of several sources may not have the release; what matters is that the packages come.
	apt-get "${debian_apt[@]}" update || true
}
