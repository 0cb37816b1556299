// Command sandbox runs a whole multi-region Bailiwick on one machine: two zones, six control nodes, four
// edges and their upstreams as real processes on loopback (design.md §7). It is the product's demonstration
// and what end-to-end tests drive; it owns its directory and its children and nothing else.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// Config is what the command line sets.
type Config struct {
	Dir       string        // state, logs and sandbox.json; made afresh at each start
	Bin       string        // where the three programs lie; default: beside this one
	BasePort  int           // default 7000
	Quiet     bool          // print nothing but errors
	NoTraffic bool          // no sample traffic
	Upstream  string        // host:port to use instead of the built-in upstreams
	Manifests string        // directory of manifests instead of the built-in ones
	Store     string        // engine of the catalog and the zone stores: raft or etcd
	Identity  time.Duration // lifetime of node certificates
	ACME      bool          // the hosts' certificates come from an ACME authority that runs beside
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "upstream":
			return runUpstream(ctx, args[1:])
		case "acme":
			return runAuthority(ctx, args[1:])
		case "etcd":
			return runEtcd(ctx, args[1:])
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cfg := Config{}
	flags := flag.NewFlagSet("sandbox", flag.ContinueOnError)
	flags.StringVar(&cfg.Dir, "dir", ".sandbox", "directory for state, logs and sandbox.json; what a former sandbox left in it is removed")
	flags.StringVar(&cfg.Bin, "bin", filepath.Dir(self), "directory of bailiwick, bailiwick-control and bailiwick-edge")
	flags.IntVar(&cfg.BasePort, "base-port", 7000, "first of the ports used on 127.0.0.1; the last is 910 higher")
	flags.BoolVar(&cfg.Quiet, "quiet", false, "print nothing but errors")
	flags.BoolVar(&cfg.NoTraffic, "no-traffic", false, "send no sample traffic")
	flags.StringVar(&cfg.Upstream, "upstream", "", "use the service at this host:port as every region's upstream")
	flags.StringVar(&cfg.Manifests, "manifests", "", "apply the manifests of this directory instead of the built-in ones")
	flags.StringVar(&cfg.Store, "store", "raft", "engine of the catalog and the zone stores: raft, or etcd, of which it then runs a cluster of three for each")
	flags.DurationVar(&cfg.Identity, "identity-ttl", 30*24*time.Hour, "lifetime of node certificates; renewed after a third of it")
	flags.BoolVar(&cfg.ACME, "acme", false, "get the hosts' certificates by ACME, from a test authority that the sandbox runs beside")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if cfg.Store != "raft" && cfg.Store != "etcd" {
		return fmt.Errorf("-store %s: choose raft or etcd", cfg.Store)
	}
	if cfg.BasePort < 1024 || cfg.BasePort > 64000 {
		return fmt.Errorf("-base-port %d: choose a port from 1024 to 64000", cfg.BasePort)
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := newSandbox(cfg, self, log)
	if err != nil {
		return err
	}
	defer s.stopAll()
	if err := s.up(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("%w (logs: %s)", err, filepath.Join(cfg.Dir, "logs"))
	}
	if !cfg.Quiet {
		s.printTable(os.Stdout)
	}
	return s.play(ctx)
}
