package image

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Transports, the part of a reference before the first colon, name where an image comes from when that
// is no registry.
const (
	transportOCI           = "oci:"
	transportOCIArchive    = "oci-archive:"
	transportDockerArchive = "docker-archive:"
)

// localRegistry is the registry part of names that were given here and belong to no registry.
const localRegistry = "localhost/"

func isTransport(ref string) bool {
	return strings.HasPrefix(ref, transportOCI) || strings.HasPrefix(ref, transportOCIArchive) ||
		strings.HasPrefix(ref, transportDockerArchive)
}

// Canonical returns the full form of a registry reference as docker means it: "busybox" is
// "docker.io/library/busybox:latest".
func Canonical(ref string) (string, error) {
	parsed, err := parseReference(ref)
	if err != nil {
		return "", err
	}
	return canonical(parsed), nil
}

// Familiar returns the short form of a full name, as docker shows it: the opposite of Canonical, but
// for the tag, which stays.
func Familiar(full string) string {
	short := strings.TrimPrefix(full, "docker.io/")
	if short == full {
		return full
	}
	return strings.TrimPrefix(short, "library/")
}

func parseReference(ref string) (name.Reference, error) {
	var opts []name.Option
	if registryIsLoopback(ref) {
		opts = append(opts, name.Insecure)
	}
	parsed, err := name.ParseReference(ref, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrInvalidReference, ref, err)
	}
	return parsed, nil
}

func canonical(ref name.Reference) string {
	repo := ref.Context()
	registry := repo.RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	sep := ":"
	if _, ok := ref.(name.Digest); ok {
		sep = "@"
	}
	return registry + "/" + repo.RepositoryStr() + sep + ref.Identifier()
}

// lookupNames are the full names that ref may stand for in the store, the likeliest first.
func lookupNames(ref string) []string {
	if isTransport(ref) {
		return nil
	}
	full, err := Canonical(ref)
	if err != nil {
		return nil
	}
	names := []string{full}
	if !hasRegistry(ref) {
		if local, err := Canonical(localRegistry + ref); err == nil {
			names = append(names, local)
		}
	}
	return names
}

// localName is the full name of an image that is made here: with no registry given it is in localhost/.
func localName(ref string) (string, error) {
	if !hasRegistry(ref) {
		ref = localRegistry + ref
	}
	return Canonical(ref)
}

// hasRegistry says whether a reference names its registry, by docker's rule.
func hasRegistry(ref string) bool {
	first, _, ok := strings.Cut(ref, "/")
	return ok && (strings.ContainsAny(first, ".:") || first == "localhost")
}

// registryIsLoopback says whether a reference's registry is on this host, where plain HTTP does no harm.
func registryIsLoopback(ref string) bool {
	first, _, _ := strings.Cut(ref, "/")
	return hasRegistry(ref) && isLoopback(first)
}

// isLoopback says whether a host, with or without a port, is this host by its very name.
func isLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}

// splitLayout splits DIR[:TAG]. A colon belongs to the directory when what follows it has a slash.
func splitLayout(arg string) (dir, tag string) {
	i := strings.LastIndexByte(arg, ':')
	if i < 0 || strings.Contains(arg[i:], "/") {
		return arg, ""
	}
	return arg[:i], arg[i+1:]
}

// splitArchive splits FILE[:REF], where REF may hold colons and slashes: the file is the longest part
// before a colon that exists, else all before the first colon.
func splitArchive(arg string, exists func(string) bool) (file, ref string) {
	if exists(arg) {
		return arg, ""
	}
	for i := len(arg) - 1; i > 0; i-- {
		if arg[i] == ':' && exists(arg[:i]) {
			return arg[:i], arg[i+1:]
		}
	}
	file, ref, _ = strings.Cut(arg, ":")
	return file, ref
}

// nameFromPath makes a local name of a file or directory that names itself nothing.
func nameFromPath(path, tag string) string {
	base := strings.ToLower(filepath.Base(path))
	for _, suffix := range []string{".gz", ".zst", ".tgz", ".tar"} {
		base = strings.TrimSuffix(base, suffix)
	}
	if tag == "" {
		tag = "latest"
	}
	full, err := localName(base + ":" + tag)
	if err != nil {
		return ""
	}
	return full
}
