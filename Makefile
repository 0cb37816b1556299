# Everything needs Go and make; `make help` lists the targets.
export CGO_ENABLED ?= 0
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
BUILD    = $(GO) build -trimpath -ldflags '$(LDFLAGS)'
ARGS    ?=

.DEFAULT_GOAL := help
.PHONY: help run build test test-race e2e campaign explore histories mutants simulate takeovers torture floods large fuzz-border model hosts bench evidence outage bench-edge free-yields h2spec fuzz fuzz-sync scale lint release follow follow-systemd generate generate-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## build, then run the sandbox on loopback until Ctrl-C; flags: make run ARGS='-base-port 9000 -quiet'
	@exec bin/sandbox $(ARGS)

build: ## build the three programs and the sandbox into bin/
	@mkdir -p bin
	$(BUILD) -o bin/ ./controlplane/cmd/... ./dataplane/cmd/... ./deploy/sandbox

test: build ## every test: unit, conformance, architecture, end to end (twelve to nineteen minutes on 2 cores)
	$(GO) vet ./...
	$(GO) test -count=1 -timeout 20m -p 4 ./regions/... ./shared/... ./controlplane/... ./dataplane/... ./deploy/... ./e2e/harness/... ./e2e/netlab/... ./e2e/hosts/canary ./e2e/hosts/wire ./e2e/mutants/... ./e2e/simulate/... ./e2e/model/... ./e2e/archtest/... ./e2e/flood
	$(GO) test -count=1 -timeout 30m -p 2 -parallel 3 ./e2e/scenario/... ./e2e/campaign/... ./e2e/hosts

test-race: ## the unit tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 40m ./regions/... ./shared/... ./controlplane/... ./dataplane/...

e2e: build ## the end-to-end tests alone; one of them: make e2e ARGS='-run TestStory/b'
	$(GO) test -count=1 -timeout 40m -p 1 -parallel 3 -v ./e2e/scenario/... $(ARGS)

campaign: build ## a sandbox under load and faults, held to the law of usage: make campaign ARGS='-seed 1 -requests 1000000 -faults 300'
	$(GO) run ./e2e/campaign $(ARGS)

explore: ## every state of the usage and quota protocols in the small, within the larger bounds (minutes, and some GB of memory)
	EXPLORE=full $(GO) test -count=1 -timeout 60m -v -run 'Explore' ./controlplane/internal/ledger/... $(ARGS)

histories: ## clients of a replicated store under kills, partitions and bad disks, checked by Porcupine; prints its seed: make histories SECONDS=600 [SEED=n]
	BAILIWICK_HISTORY=$(or $(SECONDS),120) BAILIWICK_SEED=$(SEED) $(GO) test -count=1 -timeout 24h -v -run TestHistory ./controlplane/internal/group/raftgroup ./controlplane/internal/group/etcdgroup

mutants: ## seeded bugs, one build each, which the tests must catch (an hour and more on 2 cores): make mutants ARGS='-run grant'
	$(GO) run ./e2e/mutants $(ARGS)

simulate: ## the border's own code in 100,000 random schedules; a night: make simulate ARGS='-for 10h'
	$(GO) run ./e2e/simulate $(ARGS)

takeovers: build ## an edge replaced under load, TIMES times: no request fails, and each is counted once (a minute): make takeovers TIMES=20
	TAKEOVERS=$(or $(TIMES),20) $(GO) test -count=1 -timeout 30m -v -run TestTakeover ./e2e/scenario

torture: ## a million mutated byte streams at each door of an edge: what upstreams see is counted once (an hour; prints its seed): make torture STREAMS=20000 [SEED=n]
	$(GO) test -count=1 -timeout 24h -v -run TestTorture ./dataplane/internal/proxy -args -torture $(or $(STREAMS),1000000) -torture-seed $(or $(SEED),0)

floods: build ## an edge flooded in every way there is, beside a client that behaves: a table of what came of it (a quarter of an hour; on a quiet machine): make floods EACH=3s [ONLY='HTTP/2.*bodies']
	BAILIWICK_LONG=$(or $(EACH),10s) BAILIWICK_ONLY='$(ONLY)' $(GO) test -count=1 -timeout 1h -v -run TestFloods ./e2e/scenario

large: build ## bodies of 1 GiB up and down at once, over HTTP/1.1, 2 and 3, at home and across a relay, and what memory edges take for them (minutes): make large MIB=1024
	BAILIWICK_LONG=$(or $(MIB),1024) $(GO) test -count=1 -timeout 1h -v -run TestLarge ./e2e/scenario

fuzz-border: ## requests made to cross the border, through real edges in one process (an hour): make fuzz-border ARGS='-seed 1 -requests 100000'
	$(GO) test -count=1 -timeout 24h -run TestBorder -v ./dataplane/internal/borderfuzz -args -rate 0 -for 0 -requests 10000000 $(ARGS)

model: ## the border's protocol, every state of it in the small; needs spin and gcc (minutes): make model ARGS='-run SLACK -show'
	$(GO) run ./e2e/model $(ARGS)

hosts: ## two zones on hosts in namespaces: nothing planted in one is found in the other, and each leaking build is (minutes): make hosts ARGS='-faults 60'
	$(GO) run ./e2e/hosts $(ARGS)

bench: build ## the benchmarks: request path, ledger, key and revocation latency, failover, border; a part: make bench ARGS='-only border'
	$(GO) test -run '^$$' -bench . -benchmem ./shared/... ./dataplane/... ./controlplane/internal/ledger/... ./controlplane/internal/detail/... ./controlplane/internal/group/raftgroup
	$(GO) run ./e2e/bench $(ARGS)

free-yields: ## platinum's latency beside free plans at three times what an upstream can do, through a whole edge (a minute; the quieter the machine the truer)
	$(GO) test -run '^$$' -bench FreeYields -benchtime 1x -timeout 10m ./dataplane/internal/proxy $(ARGS)

h2spec: ## h2spec's 145 tests against the edge's HTTP/2 (seconds; the tool is built on the way)
	GOBIN=$(CURDIR)/bin $(GO) install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
	BAILIWICK_H2SPEC=$(CURDIR)/bin/h2spec $(GO) test -count=1 -v -run TestSpec ./dataplane/internal/http2 | grep -E 'tests,|✗|×|FAIL|^ok'

bench-edge: build ## all rows of the edge beside nginx, HAProxy and net/http, pinned and not, also with a million keys (Debian packages; an hour and a half); some of them: make bench-edge ARGS='-rows http,https,h2 -pin both'
	$(BUILD) -o bin/ ./e2e/benchedge
	@$(if $(strip $(ARGS)),bin/benchedge $(ARGS),for pin in one both; do \
		bin/benchedge -pin $$pin -rows all && bin/benchedge -pin $$pin -rows http,https,http-few,https-few -keys 1000000 || exit 1; done)

evidence: ## a bundle of a million records of evidence, verified: the time it takes, and per record
	BAILIWICK_LONG=1 $(GO) test -run '^$$' -bench Verify -benchtime 1x -timeout 20m ./controlplane/internal/evidence $(ARGS)

outage: ## 72 hours without a control node at 1,000 requests/s, every request made (about an hour, 3 GB of disk)
	OUTAGE_SCALE=1 $(GO) test -count=1 -timeout 4h -run 72Hours -v ./dataplane/internal/spool/...

fuzz-sync: ## deltas dropped, doubled and swapped on the way to an edge (minutes; prints its seed): make fuzz-sync DELTAS=1000000 [SEED=n]
	BAILIWICK_DELTAS=$(or $(DELTAS),1000000) BAILIWICK_SEED=$(SEED) $(GO) test -count=1 -timeout 24h -v -run TestRun_ManyUpdatesUnderFaults ./dataplane/internal/subscribe

scale: ## a million keys to an edge, a control node of them, 1,000 and 5,000 edges at one (minutes): make scale KEYS=1000000 EDGES=1000 SECONDS=20 [STORE=raft|etcd]
	@mkdir -p bin && $(BUILD) -o bin/ ./deploy/sandbox
	BAILIWICK_KEYS=$(or $(KEYS),1000000) $(GO) test -count=1 -timeout 20m -v -run TestScale ./dataplane/internal/subscribe
	BAILIWICK_STORE=$(STORE) BAILIWICK_SANDBOX=$(CURDIR)/bin/sandbox BAILIWICK_KEYS=$(or $(KEYS),1000000) $(GO) test -count=1 -timeout 20m -v -run TestScale_AControlNode ./controlplane/internal/syncserver
	BAILIWICK_STORE=$(STORE) BAILIWICK_SANDBOX=$(CURDIR)/bin/sandbox BAILIWICK_EDGES=$(or $(EDGES),1000) BAILIWICK_SECONDS=$(or $(SECONDS),20) $(GO) test -count=1 -timeout 20m -v -run TestScale_ACrowd ./controlplane/internal/syncserver
	BAILIWICK_STORE=$(STORE) BAILIWICK_SANDBOX=$(CURDIR)/bin/sandbox BAILIWICK_EDGES=5000 BAILIWICK_SECONDS=6 $(GO) test -count=1 -timeout 20m -v -run TestScale_ACrowd ./controlplane/internal/syncserver

fuzz: ## a minute of each fuzz target (some 60 of them); a part: FUZZ=http1 FUZZTIME=20s make fuzz
	./e2e/fuzz.sh

lint: ## gofmt, go vet, architecture rules
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) test -count=1 ./e2e/archtest/...

release: ## archives for Linux and macOS with SHA256SUMS in dist/, the same bytes from any clone of a commit: make release ARGS='-platforms linux/amd64'
	@$(GO) run ./deploy/release $(ARGS)

follow: ## do what deploy/README.md says, command by command, on hosts that are network namespaces (root on Linux; a minute)
	@deploy/follow

follow-systemd: ## that page, then deploy/trial.md, on hosts that boot systemd: the units as they are, under load, killed, without power (root on Linux with debootstrap; three minutes, and once 400 MB): make follow-systemd DEBIAN=FOLDER
	@FOLLOW_SYSTEMD=$(or $(DEBIAN),$(CURDIR)/.debian) deploy/follow

generate: ## make proto/gen from the .proto sources
	$(GO) run ./proto/generate

generate-check: generate ## fail when proto/gen is not what the sources give
	@git diff --exit-code -- proto/gen || { echo "proto/gen is stale: run make generate and commit it"; exit 1; }

clean: ## remove bin, dist and the sandbox's directory
	rm -rf bin dist .sandbox .debian
