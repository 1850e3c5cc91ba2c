# husk's build. `make help` lists the targets; everything lands in build/, which mirrors an install prefix.
# Slow results are cached in $HUSK_CACHE (default: ~/.cache/husk), so a second run takes seconds.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# KERNEL=husk boots husk's own guest kernel, KERNEL=distro the distribution's.
KERNEL ?= husk
ARCH ?= $(shell uname -m)
PREFIX ?= /usr/local
DESTDIR ?=
export KERNEL ARCH

# Looked up when a recipe runs, so that a toolchain that `make setup` fetched counts at once.
GO = $(shell scripts/go.sh --path)
export CGO_ENABLED = 0
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT ?= $(shell git describe --always --abbrev=40 --match '' --dirty 2>/dev/null)
LDFLAGS := -s -w -buildid=

PROGRAMS := $(filter-out husk-agent,$(notdir $(wildcard cmd/*)))
# husk itself under another name: what is in memory of one program is there once.
SHIM := containerd-shim-husk-v2
AGENT := build/husk-agent
GUEST := build/lib/husk/guest

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'KERNEL=husk (default) or KERNEL=distro chooses the guest kernel for every target.'

.PHONY: quickstart
quickstart: ## from nothing to a container in a VM of its own: set up, build, run a demonstration
	@KERNEL='$(if $(filter file,$(origin KERNEL)),,$(KERNEL))' scripts/quickstart.sh

.PHONY: setup
setup: ## install what is missing to build, run and test husk (Debian packages and Go)
	@scripts/setup.sh

.PHONY: build
build: ## build husk's programs into build/bin
	@for p in $(PROGRAMS); do \
		$(GO) build -trimpath -ldflags "$(LDFLAGS) -X main.version=$(VERSION) -X husk.dev/husk/internal/cli.commit=$(COMMIT)" -o "build/bin/$$p" "./cmd/$$p"; \
	done
	@ln -sf husk build/bin/$(SHIM)

# The agent does not carry the name of a commit: its content is what the guest image is cached by, so a
# commit that leaves the agent alone leaves the image, and VMs saved from it, alone.
.PHONY: agent
agent: ## build the guest agent, a static binary
	@$(GO) build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)" -o $(AGENT) ./cmd/husk-agent

.PHONY: man
man: ## write the manual pages and shell completions to build/share
	@$(GO) run ./internal/manpages build/share/man/man1
	@mkdir -p build/share/bash-completion/completions build/share/zsh/site-functions build/share/fish/vendor_completions.d
	@build/bin/husk completion bash >build/share/bash-completion/completions/husk
	@build/bin/husk completion zsh >build/share/zsh/site-functions/_husk
	@build/bin/husk completion fish >build/share/fish/vendor_completions.d/husk.fish

.PHONY: kernel
kernel: ## build (KERNEL=husk) or fetch (KERNEL=distro) the guest kernel
	@scripts/guest.sh kernel

.PHONY: image
image: agent ## build the guest image and put it with the kernel into build/lib/husk/guest
	@scripts/guest.sh image $(GUEST) $(AGENT)

.PHONY: demo
demo: build ## make the image husk-demo (busybox) in husk's image store
	@rm -rf build/demo
	@guest/demo/build.sh build/demo
	@build/bin/husk import --cmd /bin/sh build/demo husk-demo >/dev/null

.PHONY: test
test: build image demo ## run every check and every test, and the core of the end-to-end tests with both kernels
	@scripts/test.sh all

# Suites that others have written, and long runs of our own. Each is a script, which says what it needs.
.PHONY: conformance
conformance: build image ## run the suites of others with husk (docs/conformance.md); takes long
	@failed=0; for s in scripts/conformance-*.sh; do echo "== $$s"; $$s || failed=1; done; exit $$failed

# The test host: a Debian with hardware virtualisation, emulated (CONTRIBUTING.md).
HOST ?= debian12
SUITE ?= smoke
.PHONY: host
host: ## make the test host HOST (debian12, debian13 or sid), a Debian with KVM in an emulated machine
	@scripts/host.sh image $(HOST)

.PHONY: host-test
host-test: build image demo ## run SUITE (smoke) in the test host HOST; RUN chooses tests of it
	@scripts/host.sh test $(HOST) $(if $(RUN),-run '$(RUN)') $(SUITE)

.PHONY: unit
unit: ## run the tests that need neither root nor a VM
	@scripts/test.sh unit

.PHONY: lint
lint: ## check formatting, vet, staticcheck, shellcheck, the rules and that both programs build for arm64
	@scripts/lint.sh

.PHONY: generate
generate: ## generate the protocols' code from their .proto files
	@scripts/generate.sh

.PHONY: install
install: ## install what was built below PREFIX (/usr/local)
	@test -f $(GUEST)/guest.json || { echo "install: nothing built yet: make build image" >&2; exit 1; }
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/lib/husk/guest"
	install -m 755 $(PROGRAMS:%=build/bin/%) "$(DESTDIR)$(PREFIX)/bin/"
	ln -sf husk "$(DESTDIR)$(PREFIX)/bin/$(SHIM)"
	rm -f "$(DESTDIR)$(PREFIX)"/lib/husk/guest/*
	install -m 644 $(GUEST)/* "$(DESTDIR)$(PREFIX)/lib/husk/guest/"
	[ ! -f $(GUEST)/seccomp-filter ] || chmod 755 "$(DESTDIR)$(PREFIX)/lib/husk/guest/seccomp-filter"
	@$(MAKE) man
	install -d "$(DESTDIR)$(PREFIX)/share"
	cp -r build/share/. "$(DESTDIR)$(PREFIX)/share/"

# The source of programs under the GPL that whoever passes the result on owes is named in husk-guest's SOURCE.
DIST ?= build/dist
.PHONY: dist
dist: build image ## make what a release has in build/dist: a tarball, Debian packages, checksums
	@VERSION="$(VERSION)" COMMIT="$(COMMIT)" scripts/dist.sh "$(DIST)"

.PHONY: recording
recording: build image demo ## record what README.md shows: docs/recording.svg, from docs/recording.session
	@scripts/recording.sh docs/recording.svg

.PHONY: clean
clean: ## remove build/ (the cache stays)
	rm -rf build
