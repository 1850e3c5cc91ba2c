package check

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// distro is what /etc/os-release says, os-release(5).
type distro struct {
	debian  bool // Debian or made from it: packages come by apt-get
	name    string
	version int // the whole number of VERSION_ID, 0 where there is none
}

func readDistro(root string) distro {
	data, err := os.ReadFile(filepath.Join(root, "/etc/os-release"))
	if err != nil {
		return distro{}
	}
	values := map[string]string{}
	for line := range strings.SplitSeq(string(data), "\n") {
		if key, value, found := strings.Cut(line, "="); found {
			values[key] = strings.Trim(value, `"'`)
		}
	}
	d := distro{name: values["ID"]}
	for _, id := range strings.Fields(values["ID"] + " " + values["ID_LIKE"]) {
		d.debian = d.debian || id == "debian"
	}
	whole, _, _ := strings.Cut(values["VERSION_ID"], ".")
	if n, err := strconv.Atoi(whole); err == nil {
		d.version = n
	}
	return d
}

// install is the command that installs a package of Debian's, or words for systems that name it otherwise.
func (d distro) install(pkg string) string {
	if d.debian {
		return "apt-get install " + pkg
	}
	return "install what Debian calls " + pkg
}

// virtiofsdPackage is where the file service comes from: it left QEMU with Debian 13 and Ubuntu 23.
func (d distro) virtiofsdPackage() string {
	last := map[string]int{"debian": 12, "ubuntu": 22}
	if d.version > 0 && d.version <= last[d.name] {
		return "qemu-system-common"
	}
	return "virtiofsd"
}
