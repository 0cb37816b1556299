// Command benchedge measures what a request costs this edge, nginx, HAProxy and a plain net/http proxy, side by side on one
// machine: each authenticates the key, limits its rate, and writes down what it did; the edge leases quota, counts durably
// and checks the border besides. RESULTS.md says what was found and how each figure was got.
//
// It needs bin/ (make build) and the Debian packages nginx-light, haproxy, wrk and nghttp2-client; it names those that are
// missing. It listens on loopback only, and ends what it started,
// however it ends itself.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

type config struct {
	dir, bin   string
	before     []string // directories of other builds' bailiwick-edge
	base       int
	keys       int
	inUse      int // 0: all
	rounds     int
	lasts      time.Duration
	conns      int
	rows, only []string
	pin        string
	realtime   bool
	edgeArgs   []string // more flags of the edge
}

func main() {
	var cfg config
	flag.StringVar(&cfg.dir, "dir", "", "where everything is put; default: a directory that is removed at the end")
	flag.StringVar(&cfg.bin, "bin", "bin", "where the programs are")
	before := flag.String("before", "", "directories of other builds of bailiwick-edge, with commas between, which are peers too (before, before2, …): before and after in one run")
	flag.IntVar(&cfg.base, "base-port", 15000, "first of a hundred ports")
	flag.IntVar(&cfg.keys, "keys", 1000, "API keys that all peers hold")
	flag.IntVar(&cfg.inUse, "used", 0, "of them, used in turn over HTTP/1.1; 0: all")
	flag.IntVar(&cfg.rounds, "rounds", 5, "of each row, the peers in rotation")
	flag.DurationVar(&cfg.lasts, "for", 5*time.Second, "length of one sample")
	flag.IntVar(&cfg.conns, "connections", 64, "of the load generator")
	flag.StringVar(&cfg.pin, "pin", "one", "one: peers on CPU 0, load and upstream on CPU 1; both: the system decides")
	flag.BoolVar(&cfg.realtime, "realtime", false, "peers, upstream and load generator in the kernel's real-time class, all of one priority (root): what else runs on this machine does not count. The control node is outside of it")
	edgeArgs := flag.String("edge-args", "", "more flags of the edge, with blanks between")
	rows := flag.String("rows", "http", "all, or with commas between: "+strings.Join(rowNames(), ", "))
	only := flag.String("only", "", "peers, with commas between; empty: edge, before (with -before), nginx, haproxy, nethttp")
	reference := flag.String("reference", "", "be the net/http reference with this configuration (internal)")
	generate := flag.String("load", "", "be the load generator with this configuration (internal)")
	flag.Parse()
	if *generate != "" {
		fatal(load(*generate))
		return
	}
	if *reference != "" {
		fatal(serveReference(*reference))
		return
	}
	if *before != "" {
		cfg.before = strings.Split(*before, ",")
	}
	if os.Getenv(kept) == "" {
		code, err := keep(append([]string{"/proc/self/exe"}, os.Args[1:]...)...)
		fatal(err)
		os.Exit(code)
	}
	cfg.rows, cfg.edgeArgs = strings.Split(*rows, ","), strings.Fields(*edgeArgs)
	if *rows == "all" {
		cfg.rows = rowNames()
	}
	if *only != "" {
		cfg.only = strings.Split(*only, ",")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fatal(run(ctx, cfg))
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchedge:", err)
		os.Exit(1)
	}
}

// missing are the programs of packages that are not there.
func missing() error {
	var lack []string
	for program, pkg := range map[string]string{"nginx": "nginx-light", "haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client", "taskset": "util-linux", "chrt": "util-linux"} {
		if _, err := exec.LookPath(program); err != nil {
			lack = append(lack, pkg)
		}
	}
	if lack != nil {
		return fmt.Errorf("install what is missing, or nothing can be compared: apt-get install --no-install-recommends %s", strings.Join(lack, " "))
	}
	return nil
}

func run(ctx context.Context, cfg config) (err error) {
	if err := missing(); err != nil {
		return err
	}
	if cfg.pin == "one" && runtime.NumCPU() < 2 {
		return fmt.Errorf("-pin one needs two CPUs, there is %d", runtime.NumCPU())
	}
	if cfg.bin, err = filepath.Abs(cfg.bin); err != nil {
		return err
	}
	for i := range cfg.before {
		if cfg.before[i], err = filepath.Abs(cfg.before[i]); err != nil {
			return err
		}
	}
	if cfg.dir == "" {
		if cfg.dir, err = os.MkdirTemp("", "benchedge"); err != nil {
			return err
		}
		defer os.RemoveAll(cfg.dir)
	} else if err := os.MkdirAll(cfg.dir, 0o700); err != nil {
		return err
	}
	b := &bench{config: cfg}
	defer b.stopAll()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	for _, name := range cfg.rows {
		r, ok := rowOf(name)
		if !ok {
			return fmt.Errorf("no row %q; there are %s", name, strings.Join(rowNames(), ", "))
		}
		if err := b.measure(ctx, r); err != nil {
			return fmt.Errorf("row %s: %w", name, err)
		}
	}
	return nil
}
