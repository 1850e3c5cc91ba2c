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

GO := $(shell scripts/go.sh --path)
export PATH := $(patsubst %/,%,$(dir $(GO))):$(PATH)
export CGO_ENABLED = 0
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GOFLAGS_BUILD := -trimpath -ldflags "-s -w -buildid= -X main.version=$(VERSION)"

GUEST := build/lib/husk/guest
AGENT := build/husk-agent
PROGRAMS := $(filter-out husk-agent,$(notdir $(wildcard cmd/*)))

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what is missing to build, run and test husk (Debian packages and Go)
	@scripts/setup.sh

.PHONY: build
build: ## build husk's programs into build/bin
	@for p in $(PROGRAMS); do $(GO) build $(GOFLAGS_BUILD) -o "build/bin/$$p" "./cmd/$$p"; done

# The agent's content is the key of the guest image, so it does not carry a commit's name: a commit that
# leaves the agent alone leaves the image alone.
.PHONY: agent
agent: ## build the guest agent into build/husk-agent
	@$(GO) build -trimpath -ldflags "-s -w -buildid=" -o $(AGENT) ./cmd/husk-agent

.PHONY: kernel
kernel: ## build (KERNEL=husk) or fetch (KERNEL=distro) the guest kernel
	@scripts/guest.sh kernel

.PHONY: image
image: agent ## build the guest image and put it with the kernel into build/lib/husk/guest
	@scripts/guest.sh image $(GUEST) $(AGENT)
