# `make demo` and `make test` are all that a newcomer needs. Both install what they need from the distribution, and say so.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test build setup packages image tools format lint unit e2e prove deny bench bench-docs fuzz clean help package packages-for-tests check-packages desktop

export RUST_BACKTRACE ?= 1
# Tests make network namespaces and load real PAM modules: they need root. Everything they make is their own and goes with them.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
AS_ROOT := $(if $(SUDO),CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sudo -E")
FUZZ := frames messages local envelope trust policy config admin import
# For each fuzz target.
SECONDS ?= 60
VENV := target/interop-venv
PACKAGES := build-essential pkg-config cmake libclang-dev clang libpcsclite-dev libpam0g-dev pcscd opensc yubico-piv-tool pamtester \
	systemd iproute2 iputils-ping dbus-daemon dbus-bin nftables wireguard-tools tcpdump util-linux login openssl python3-venv procps mmdebstrap systemd-container libfaketime \
	qemu-system-x86 e2fsprogs binutils

help: ## this list
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: build ## the patent's own example: four terminals, two closed groups, real logins (KEEP=1 leaves it standing)
	@$(SUDO) env CUG_BUILT=1 KEEP="$(KEEP)" target/debug/demo

test: format lint units docs unit e2e deny ## everything that must hold before a change lands

# The workspace as a whole, here and wherever tests run, and with examples, which count as tests do: so every library is built with one set of
# features and once, and what is tested is what was built.
build: setup ## all programs, the PAM module and the test rig
	@cargo build --locked --workspace --bins --lib --examples

setup: toolchain packages

.PHONY: toolchain
toolchain:
	@command -v cargo >/dev/null || { echo "Rust is not installed: get the toolchain from https://rustup.rs (1.95 or later), then run this again."; exit 1; }

packages:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "Installing from the distribution: $$(echo $$missing)"; \
		$(SUDO) apt-get -qq -o DPkg::Lock::Timeout=300 update >/dev/null; \
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $$missing >/dev/null; \
	fi

format: toolchain
	@cargo fmt --all --check

lint: setup
	@cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: units docs pictures
units: setup ## the sandboxes of the systemd units
	@packaging/check-units

docs: ## the threat model's tests exist, and the pictures are up to date
	@docs/check

pictures: ## draws docs/*.svg (needs graphviz)
	@for p in parts login; do dot -Tsvg docs/$$p.dot | sed '/^<!-- Generated/,/-->/d' >docs/$$p.svg; done

unit: build $(VENV)/ready ## unit and property tests
	@$(AS_ROOT) cargo test --locked --workspace --exclude cug-tests

# systemd-resolved is unpacked and not installed: installing it changes the name service of the machine.
RESOLVED := target/systemd-resolved
$(RESOLVED)/ready:
	@mkdir -p $(RESOLVED) && cd $(RESOLVED) && apt-get -qq download systemd-resolved 2>/dev/null && dpkg-deb -x systemd-resolved_*.deb . && touch ready

e2e: build image desktop $(RESOLVED)/ready packages-for-tests ## end to end: real PAM, pcscd, cards, TLS and WireGuard on several hosts
	@CUG_BUILT=1 $(AS_ROOT) cargo test --locked --workspace --test e2e --test machine --test vm
	@cat target/e2e/*.times
	@echo "The same with a card written by others (piv-authenticator):"
	@CUG_BUILT=1 CUG_CARD=piv-authenticator $(AS_ROOT) cargo test --locked --workspace --test e2e

# A distribution's own workstation, with systemd, for tests/machine: the suite of tests/src/machine.rs, and the one after it.
image: target/images/bookworm.ready target/images/trixie.ready

target/images/%.ready: tests/image/build tests/image/kernel
	@echo "Making the image of a workstation from the distribution's packages ($*)"
	@$(SUDO) tests/image/build $* target/images/$*
	@touch $@

# The same with a greeter, an X server without a screen, and what types and takes pictures there.
DESKTOP := lightdm,lightdm-gtk-greeter,greetd,xvfb,xdotool,scrot,xterm,xauth,xss-lock,xsecurelock,i3lock,adwaita-icon-theme,fonts-dejavu-core,at-spi2-core
desktop: target/images/bookworm-desktop.ready

target/images/bookworm-desktop.ready: tests/image/build tests/image/kernel
	@echo "Making the image of a workstation with a greeter"
	@$(SUDO) tests/image/build bookworm target/images/bookworm-desktop $(DESKTOP)
	@touch $@

# What makes packages, and what looks at licences.
target/tools/bin/%: packaging/tools
	@packaging/tools $*

# Of the programs that were just built, twice with one number and the next: tests install, upgrade and downgrade them.
packages-for-tests: build target/tools/bin/cargo-deb
	@packaging/package debug && KEEP_OTHERS=1 REVISION=2 packaging/package debug

package: setup target/tools/bin/cargo-deb target/tools/bin/cargo-generate-rpm ## .deb and .rpm in target/package/dist, optimised and checked (some minutes)
	@missing=$$(for p in lintian rpm rpmlint man-db; do dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "Installing from the distribution: $$(echo $$missing)"; \
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $$missing >/dev/null; fi
	@packaging/package
	@packaging/check-packages
	@ls -l target/package/dist

.PHONY: reproducible
reproducible: target/tools/bin/cargo-deb target/tools/bin/cargo-generate-rpm ## the same commit, built here and at another place, gives the same packages (a long time)
	@packaging/reproducible

$(VENV)/ready: crates/cug-proto/tests/interop/setup
	@crates/cug-proto/tests/interop/setup $(VENV)
	@touch $@

fuzz: setup ## what decodes foreign bytes, under libFuzzer for SECONDS=60 each (KEEP=1 adds what it learnt to the corpora)
	@RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/fuzz/instrument cargo build --locked -p cug-fuzz --features libfuzzer $(FUZZ:%=--bin fuzz-%)
	@for target in $(FUZZ); do \
		mkdir -p target/fuzz/$$target; \
		echo "$$target: $(SECONDS) s"; \
		target/debug/fuzz-$$target -max_total_time=$(SECONDS) -max_len=70000 -timeout=10 -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1 \
			-artifact_prefix=target/fuzz/$$target- target/fuzz/$$target fuzz/corpus/$$target || exit 1; \
		if [ -n "$(KEEP)" ]; then target/debug/fuzz-$$target -set_cover_merge=1 -max_len=256 -verbosity=0 fuzz/corpus/$$target target/fuzz/$$target || exit 1; fi; \
	done

# In release, and beside each other: what is reported are ratios of one run.
bench: PACKAGES += iperf3 wireguard-go ethtool libpam-pkcs11 opensc-pkcs11
bench: setup target/bench/peers ## what it costs, against its aims (some minutes; ARGS="--quick B5" for a part)
	@cargo build --locked --release --workspace --bins --lib
	@$(SUDO) target/release/bench $(ARGS)

# SSSD's PAM module, to be loaded and measured. Unpacked and not installed: its package would put it into this machine's logins.
target/bench/peers: | packages
	@rm -rf $@ $@.new && mkdir -p $@.new && cd $@.new && apt-get -qq -o APT::Sandbox::User=root download libpam-sss && dpkg-deb -x libpam-sss_*.deb .
	@mv $@.new $@

bench-docs: override ARGS += --docs docs
bench-docs: bench ## the same, and docs/benchmarks.md with its pictures

prove: toolchain ## the symbolic model of the protocol
	@command -v verifpal >/dev/null || { echo "Installing the protocol checker (verifpal, some minutes)"; cargo install --quiet --ignore-rust-version verifpal@1.6.7; }
	@crates/cug-proto/model/run

# What only other systems need is looked at too, and no build fetches it.
deny: toolchain target/tools/bin/cargo-deny ## licences, sources and advisories of every dependency
	@cargo fetch --locked --quiet
	@PATH=$(CURDIR)/target/tools/bin:$$PATH cargo deny --offline --log-level error check licenses bans sources
	@PATH=$(CURDIR)/target/tools/bin:$$PATH packaging/check-advisories

clean:
	@cargo clean
