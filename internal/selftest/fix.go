package selftest

import (
	"errors"
	"slices"
	"strings"

	"husk.dev/husk/internal/check"
	"husk.dev/husk/internal/config"
)

// mendings are what mends what an error speaks of, the first that it speaks of counts. DIRS and CONFIG stand for what
// they are here.
var mendings = []struct {
	says []string // one of them
	fix  string
}{
	{[]string{"no space left on device", "disk quota exceeded"}, "free some space below DIRS, set data_dir and run_dir in CONFIG to where there is more, or use --dir"},
	{
		[]string{"read-only file system", "permission denied", "not a directory", "no such file or directory", "file name too long", "operation not permitted"},
		"set data_dir and run_dir in CONFIG to directories that this user can write to and run programs of (not DIRS), or use --dir",
	},
	{[]string{"file service", "virtiofsd"}, "have CONFIG name no virtiofsd, or the distribution's (package virtiofsd, on Debian 12 qemu-system-common)"},
	{[]string{"passt"}, "install the distribution's passt (apt-get install passt)"},
	{[]string{"memory"}, "free some memory, or set memory_mib in CONFIG to less"},
	{[]string{"has not answered", "did not answer", "no answer", "start_timeout"}, "set start_timeout_seconds in CONFIG to more: this machine is slow, or its guest hangs (the log has its console)"},
	{[]string{"qemu", "QEMU"}, "have CONFIG name no qemu, or the distribution's; the log has what it said"},
}

// diskSteps are the steps in which what the errors of files speak of are the directories.
var diskSteps = []string{"image"}

// reportIt is what mends what is husk's own fault.
const reportIt = "report it with the output of husk selftest --json, and the log"

// fix says what mends a step that failed.
func (s *session) fix(st step, err error) string {
	for _, item := range s.report.Check.Items {
		if item.Status == check.Missing && item.Fix != "" && (st.name == "check" || slices.Contains(st.concerns, item.Name)) {
			return strings.ReplaceAll(item.Fix, config.DefaultFile, s.configFile())
		}
	}
	var late timeUp
	if errors.As(err, &late) {
		return "give it more time with --timeout and --step-timeout, or look into the log for what hangs"
	}
	text := err.Error()
	data, run := s.at.places()
	words := strings.NewReplacer("DIRS", data+" and "+run, "CONFIG", s.configFile())
	for i, m := range mendings {
		if i == 1 && !slices.Contains(diskSteps, st.name) {
			continue
		}
		if slices.ContainsFunc(m.says, func(says string) bool { return strings.Contains(text, says) }) {
			return words.Replace(m.fix)
		}
	}
	return reportIt
}

// configFile is the file that says what is tried.
func (s *session) configFile() string {
	if s.at.ConfigFile == "" {
		return config.DefaultFile
	}
	return s.at.ConfigFile
}
