// Command bailiwick-control is a control node, and the tool that makes the keys of an installation.
//
//	bailiwick-control init -spec installation.yaml -out DIR    once, on a machine that goes offline after
//	bailiwick-control run -dir DIR/NODE                        on each control node, with its kit
//	bailiwick-control join -dir DIR …                          makes another control node of a running zone
//	bailiwick-control inspect|recover|restore -dir DIR/NODE    while the node is stopped
package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"bailiwick/controlplane"
	"bailiwick/controlplane/internal/alert"
	"bailiwick/controlplane/internal/heap"
	"bailiwick/controlplane/internal/rollout"
	"bailiwick/controlplane/internal/sso"
	"bailiwick/shared/telemetry"
)

var version = "dev"

const usage = `usage:
  bailiwick-control init -spec FILE -out DIR   make an installation's keys and one kit for each control node
  bailiwick-control run -dir DIR               run a control node on its kit
  bailiwick-control join -dir DIR              get the kit of a new or replaced node from a running zone, with a token
  bailiwick-control inspect -dir DIR           what a stopped node holds of each group, proved
  bailiwick-control backup -dir DIR GROUP...   back up groups of a stopped node: catalog, store/ZONE, ledger/ZONE
  bailiwick-control recover -dir DIR           go on with this node alone after a group lost its quorum for good
  bailiwick-control restore -dir DIR -file F   put a backup in the place of a group, this node its only member
  bailiwick-control version
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "bailiwick-control:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return errUsage
	}
	switch args[0] {
	case "init":
		return initialise(args[1:])
	case "run":
		return serve(ctx, args[1:])
	case "join":
		return join(ctx, args[1:])
	case "inspect":
		return inspect(args[1:])
	case "backup":
		return backupGroups(ctx, args[1:])
	case "restore":
		return restore(args[1:])
	case "recover":
		return recoverGroups(args[1:])
	case "version":
		fmt.Println(version)
		return nil
	}
	fmt.Fprint(os.Stderr, usage)
	return errUsage
}

// initialise writes the offline root, a kit for each control node, the bundle that clients verify with, and
// the first operator's token, of which the kits hold only the hash.
func initialise(args []string) error {
	flags := flag.NewFlagSet("init", flag.ContinueOnError)
	specFile := flags.String("spec", "", "the installation: zones, regions and control nodes, as YAML")
	out := flags.String("out", "", "directory for the root and the kits; it must not hold a root yet")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *specFile == "" || *out == "" {
		return errors.New("init: -spec and -out are required")
	}
	text, err := os.ReadFile(*specFile)
	if err != nil {
		return err
	}
	nodes, roots, err := controlplane.Init(text, *out)
	if err != nil {
		return err
	}
	var secret [24]byte
	rand.Read(secret[:])
	token := "bwo_" + base64.RawURLEncoding.EncodeToString(secret[:])
	hash := sha256.Sum256([]byte(token))
	operator, err := json.Marshal(controlplane.Operator{Name: "admin", Role: "admin", TokenHash: hex.EncodeToString(hash[:])})
	if err != nil {
		return err
	}
	for _, node := range nodes {
		if err := os.WriteFile(filepath.Join(*out, node, "identity", controlplane.FileOperator), append(operator, '\n'), 0o600); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(*out, "admin.token"), []byte(token+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*out, "ca.pem"), roots, 0o644); err != nil {
		return err
	}
	fmt.Printf("%s holds a kit for each of %d control nodes, the clients' ca.pem, the first operator's admin.token, and root/.\n", *out, len(nodes))
	fmt.Println("Copy each kit to its node, keep root/ offline, and run: bailiwick-control run -dir KIT")
	return nil
}

func serve(ctx context.Context, args []string) error {
	cfg := controlplane.Config{Version: version, DropDelta: dropDelta()}
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.StringVar(&cfg.Dir, "dir", os.Getenv("BAILIWICK_DIR"), "data directory with the node's kit in identity/ (BAILIWICK_DIR)")
	flags.StringVar(&cfg.AdminListen, "admin-listen", "", "host:port of the admin port; default: the node's admin URL")
	flags.StringVar(&cfg.PeerListen, "peer-listen", "", "host:port of the peer port, TCP and UDP; default: the node's peer address")
	flags.StringVar(&cfg.Timing, "raft-timing", "regional", "local (one machine room), regional, or global (voters far apart)")
	flags.Func("webhook-allow", "networks that webhooks may reach although they are not public, by http too, comma separated; for tests and sandboxes", func(text string) (err error) {
		cfg.WebhookAllow, err = alert.Networks(text)
		return err
	})
	storeFlags(flags, &cfg.Stores)
	etcdFlags(flags, "discovery-etcd", "of an etcd in the zone that names upstreams of APIs with discovery: etcd, below PREFIX ZONE/API/REGION/", "bailiwick/upstreams/", &cfg.Discovery)
	list := func(to *[]string) func(string) error {
		return func(v string) error { *to = append(*to, v); return nil }
	}
	flags.Func("sink", "where usage goes besides the ledger, kafka=host:port,host:port/topic; may be repeated, and is the same on all nodes of a zone", list(&cfg.Sinks))
	flags.Func("sink-forget", "name of a sink that blocks are no longer kept for, kafka:topic; may be repeated", list(&cfg.ForgetSinks))
	flags.Int64Var(&cfg.OutboxBytes, "outbox-bytes", 1<<30, "what the ledger keeps for sinks that are away; beyond it they fall behind, which is recorded")
	flags.DurationVar(&cfg.StateCheck, "state-check", 10*time.Minute, "between comparisons of the ledger's state on all nodes of the zone")
	flags.DurationVar(&cfg.PeriodGrace, "period-grace", 12*time.Hour, "after a day's end, by this node's clock and an edge's, then it is closed whoever else is silent")
	flags.DurationVar(&cfg.FoldAfter, "compact-after", 35*24*time.Hour, "after its end a closed day is compacted")
	flags.Int64Var(&cfg.MaxEdgeRate, "max-edge-rate", 250_000, "requests a second that one edge can serve at most: usage that says more is refused")
	flags.DurationVar(&cfg.DetailRetention, "detail-retention", 35*24*time.Hour, "how long rows of single requests are kept")
	flags.Int64Var(&cfg.DetailBudget, "detail-budget", 20<<30, "bytes of such rows on this node's disk; beyond it the oldest files go, counted")
	flags.DurationVar(&cfg.EvidenceKeep, "evidence-keep", 400*24*time.Hour, "how long records of the zone's evidence are kept")
	flags.Int64Var(&cfg.EvidenceBytes, "evidence-bytes", 32<<30, "bytes of them on this node's disk; beyond it the oldest go before their time, and the log says so")
	soakOf := func(to *time.Duration, name, what string, def time.Duration) {
		flags.DurationVar(to, "rollout-"+name, def, what)
	}
	soak := rollout.Soak{}.WithDefaults()
	soakOf(&cfg.Soak.Canary, "canary", "how long the canary of each zone is watched before a change of the catalog goes on; the same on all nodes, like the next ones", soak.Canary)
	soakOf(&cfg.Soak.Region, "region", "how long its region is, after it", soak.Region)
	soakOf(&cfg.Soak.Rest, "rest", "how long each further ring is", soak.Rest)
	soakOf(&cfg.Soak.Ready, "ready", "how long an edge may be unready under a change before that is taken back", soak.Ready)
	soakOf(&cfg.Soak.Lost, "lost", "how long it may be away", soak.Lost)
	soakOf(&cfg.Soak.Silent, "silent", "how long a zone may say nothing before the others go on without it", soak.Silent)
	flags.Func("rollout-soak", "sets all of these to fit one length of each ring; for installations in one room", func(text string) error {
		d, err := time.ParseDuration(text)
		if err == nil && d <= 0 {
			err = errors.New("it must be above 0")
		}
		cfg.Soak = rollout.All(d)
		return err
	})
	issuer := flags.String("oidc-issuer", "", "https URL of an OpenID Connect issuer whose ID tokens operators may show; empty: none")
	audience := flags.String("oidc-audience", "bailiwick", "for whom its tokens must be issued")
	claim := flags.String("oidc-claim", sso.DefaultClaim, "claim whose values stand for roles")
	nameClaim := flags.String("oidc-name", sso.DefaultName, "claim that is an operator's name; an email counts only if verified")
	roles := flags.String("oidc-roles", "", "what values of the claim stand for in this zone, the first that fits counts: platform=admin,emea-ops=zone-admin")
	flags.Int64Var(&cfg.ReserveBytes, "reserve-bytes", controlplane.DefaultReserve, "of the disk, kept for the day on which it is full; below 0: none")
	cores := flags.Bool("core-dumps", false, "let the system dump this process's memory when it crashes; keys and requests are in it")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	format := flags.String("log-format", "text", "text or json")
	flags.Int("bootstrap-expect", 3, "voters of a zone's groups; the kit names them, and this must agree when given")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *issuer != "" {
		mapped, err := sso.ParseRoles(*roles)
		if err != nil {
			return fmt.Errorf("run: -oidc-roles: %w", err)
		}
		cfg.SSO = &sso.Config{Issuer: *issuer, Audience: *audience, Claim: *claim, Name: *nameClaim, Roles: mapped}
	}
	if cfg.Dir == "" {
		return errors.New("run: -dir is required")
	}
	if err := telemetry.CheckLogging(*level, *format); err != nil {
		return err
	}
	if !*cores {
		if err := telemetry.NoCoreDumps(); err != nil {
			return err
		}
	}
	flags.Visit(func(f *flag.Flag) {
		if f.Name == "bootstrap-expect" {
			cfg.BootstrapExpect = f.Value.(flag.Getter).Get().(int)
		}
	})
	cfg.Logger = telemetry.NewLogger(os.Stderr, *level, *format, "bailiwick-control", filepath.Base(cfg.Dir))
	if os.Getenv("GOGC") == "" { // an operator knows better
		defer heap.Room(heap.DefaultRoom)()
	}
	node, err := controlplane.New(cfg)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { // a thread stuck in a disk write cannot be recalled: the second signal ends it now
		<-ctx.Done()
		again := make(chan os.Signal, 1)
		signal.Notify(again, os.Interrupt, syscall.SIGTERM)
		select {
		case <-ended:
		case <-again:
			os.Exit(1)
		case <-time.After(45 * time.Second):
			os.Exit(1)
		}
	}()
	defer close(ended)
	return node.Run(ctx)
}
