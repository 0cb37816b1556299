// Command bailiwick-edge is a data plane: the proxy that customers talk to.
//
// It ends with 0 when it was asked to, with 3 when it was removed from the node registry, and with 1 for all else:
// whoever supervises it starts it again then, but never after 3, for it would serve from its disk until it is told anew.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"

	"bailiwick/dataplane"
	"bailiwick/regions/answer"
	"bailiwick/shared/telemetry"
)

var version = "dev"

const exitWithdrawn = 3 // an interface: the systemd unit knows it

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log, err := run(ctx, os.Args[1:], os.Environ())
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	if log != nil { // whoever reads JSON gets no line that is none
		log.Error("edge ends", "error", err)
	} else {
		fmt.Fprintln(os.Stderr, "bailiwick-edge:", err)
	}
	if errors.Is(err, dataplane.ErrWithdrawn) {
		os.Exit(exitWithdrawn)
	}
	os.Exit(1)
}

// run runs an edge. The log is not nil where JSON was asked for.
func run(ctx context.Context, args, environ []string) (log *slog.Logger, err error) {
	cfg := dataplane.Config{Version: version}
	flags := flag.NewFlagSet("bailiwick-edge", flag.ContinueOnError)
	flags.StringVar(&cfg.Dir, "dir", os.Getenv("BAILIWICK_DIR"), "data directory (BAILIWICK_DIR)")
	flags.StringVar(&cfg.Name, "name", "", "this edge's name, as its join token says")
	flags.StringVar(&cfg.Region, "region", "", "its region, likewise")
	flags.StringVar(&cfg.HTTPS, "https", ":443", "host:port for HTTPS; HTTP/3 on the same number in UDP")
	flags.StringVar(&cfg.HTTP, "http", "", "host:port for cleartext HTTP; empty: none")
	flags.StringVar(&cfg.Relay, "relay", ":7500", "host:port where edges of other regions relay to")
	flags.StringVar(&cfg.RelayAdvertise, "relay-advertise", "", "host:port that other edges are told; default: -relay")
	flags.StringVar(&cfg.Admin, "admin", "127.0.0.1:7900", "host:port for health and metrics; empty: none")
	public := flags.String("public", "", "addresses at which clients reach this edge, comma separated, for the zone's DNS answers; empty: clients are not led here")
	flags.IntVar(&cfg.PublicHTTPSPort, "public-https-port", 0, "port at those addresses; default: that of -https")
	flags.StringVar(&cfg.DNS.Listen, "dns", "", "host:port for authoritative DNS of the zone's hosts, UDP and TCP; one address on a host with several; empty: none")
	domains := flags.String("dns-domains", "", "domains delegated to the zone's edges, comma separated; default: each host for itself")
	flags.StringVar(&cfg.DNS.CAA, "dns-caa", "", "certification authority that CAA records name; empty: no CAA records")
	flags.DurationVar(&cfg.DNS.TTL, "dns-ttl", 20*time.Second, "life of an answer, at most 30s")
	flags.DurationVar(&cfg.DNS.Ramp, "dns-ramp", answer.Ramp, "over how long a region that returns, from a drain or from looking dead, comes from a tenth to its full share of the answers, at most 1h; 0: at once")
	flags.DurationVar(&cfg.DNS.NegativeTTL, "dns-negative-ttl", 30*time.Second, "life of the answer that there is none, at most 5m")
	control := flags.String("control", os.Getenv("BAILIWICK_CONTROL"), "admin URLs of the zone's control nodes, comma separated; to join (BAILIWICK_CONTROL)")
	flags.StringVar(&cfg.CAFile, "ca-file", os.Getenv("BAILIWICK_CA_FILE"), "the installation's roots; to join (BAILIWICK_CA_FILE)")
	flags.StringVar(&cfg.JoinTokenFile, "join-token-file", "", "file with the join token; to join")
	flags.DurationVar(&cfg.QuotaWait, "quota-wait", 250*time.Millisecond, "how long a request waits for the first word on its quota, at most 10s; 0: it is refused at once")
	flags.DurationVar(&cfg.BusyPoll, "busy-poll", 100*time.Microsecond, "for how long the edge looks for an upstream's answer before it sleeps, while requests come one at a time and answers within that time, at most 1ms; 0: not at all")
	flags.IntVar(&cfg.MaxInFlight, "max-in-flight", 16_384, "requests of clients under way at once; plans of class free may take 60 % of them, bronze 70, silver 80, gold 90, platinum all")
	flags.IntVar(&cfg.MaxConnections, "max-connections", 0, "connections of clients, over TCP and QUIC, at once; 0: three quarters of the files that the process may open")
	flags.IntVar(&cfg.MaxPerAddress, "max-connections-per-address", 0, "of them, of one address, or one /64 of IPv6; loopback is not bounded apart; 0: an eighth")
	flags.IntVar(&cfg.MaxStreams, "max-streams", 16_384, "WebSockets, and connections of APIs that are tcp, at once")
	flags.Int64Var(&cfg.DetailBytes, "detail-bytes", 3<<30, "disk for detail of requests that no control node has stored yet; beyond it the oldest is given up, and counted")
	flags.Int64Var(&cfg.RelayRowsBytes, "relay-rows-bytes", 256<<20, "disk for rows of relays, which auditors may ask for; beyond it the oldest go, and are counted")
	flags.DurationVar(&cfg.RelayRowsKeep, "relay-rows-keep", 90*24*time.Hour, "how long rows of relays are kept")
	flags.StringVar(&cfg.OnSpoolError, "on-spool-error", "refuse-new", "refuse-new or serve-unbilled, when usage cannot be recorded")
	flags.StringVar(&cfg.AccessLog, "access-log", "", "file for a line of JSON for each request; empty: none")
	flags.Float64Var(&cfg.AccessLogSample, "access-log-sample", 0, "part of requests that are in it, 0 to 1; those that ended with 5xx always are; 0: all")
	flags.Int64Var(&cfg.AccessLogBytes, "access-log-bytes", 0, "size at which the file is moved to FILE.1; 0: 256 MiB")
	flags.StringVar(&cfg.Traces.Endpoint, "traces-endpoint", "", "URL of an OTLP/HTTP receiver in the zone for traces, such as https://collector:4318/v1/traces; http only at loopback; empty: none")
	flags.Float64Var(&cfg.Traces.Ratio, "traces-ratio", 0, "part of requests that have a trace, 0 to 1, where their caller has not decided")
	flags.IntVar(&cfg.Traces.PerSecond, "traces-per-second", 100, "traces begun in a second at most; callers' decisions take half of them at the edge that they ask")
	tracesHeaders := flags.String("traces-headers-file", "", "file of NAME: VALUE lines for the receiver, by which it knows this edge")
	tracesRoots := flags.String("traces-ca-file", "", "roots of the receiver's TLS; default: the system's")
	flags.StringVar(&cfg.Pprof, "pprof", "", "host:port, of loopback, for profiles of this process below /debug/pprof/; empty: none")
	flags.Int64Var(&cfg.CacheBytes, "cache-bytes", 0, "memory for answers of routes that have a cache; 0: 64 MiB")
	flags.StringVar(&cfg.UpstreamAllow, "upstream-allow", "", "addresses that upstreams may have besides public ones, comma-separated: private, loopback, or blocks such as 10.1.0.0/16")
	flags.StringVar(&cfg.UpstreamAllowForeign, "upstream-allow-foreign", "", "the same for upstreams that APIs of other zones name, whose requests are relayed here; nothing of -upstream-allow holds for them")
	flags.StringVar(&cfg.UpstreamCerts, "upstream-certs", "", "directory of client certificates for upstreams, NAME.crt and NAME.key, as manifests name them; of another zone's APIs ZONE/NAME.crt and ZONE/NAME.key")
	flags.DurationVar(&cfg.UpstreamRefresh, "upstream-refresh", 0, "how often names of upstreams with discovery: dns are resolved; 0: 5s, at least 1s")
	flags.Int64Var(&cfg.UploadRate, "min-upload-rate", 1<<10, "bytes a second that a client has to bring of a body that streams up, over each 20 s that are spent waiting for it; who is slower gets 408, or, of a declared length, the end of the answer that has begun")
	flags.DurationVar(&cfg.UpstreamDrain, "upstream-drain", 5*time.Minute, "for how long streams, WebSockets and connections go on at an upstream that its API does not name any more, or names with drain")
	flags.BoolVar(&cfg.AllowLoopbackUpstreams, "allow-loopback-upstreams", false, "let manifests name upstreams on this machine")
	flags.StringVar(&cfg.ACME.Directory, "acme-directory", "", "ACME directory URL for the hosts' certificates; empty: the installation's authority")
	flags.StringVar(&cfg.ACME.Email, "acme-email", "", "contact for the ACME account")
	acmeRoots := flags.String("acme-ca-file", "", "roots of the ACME directory's own TLS; default: the system's")
	cores := flags.Bool("core-dumps", false, "let the system dump this process's memory when it crashes; keys and requests are in it")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	format := flags.String("log-format", "text", "text or json")
	flags.BoolVar(&cfg.Takeover, "takeover", false, "take the place of the process that serves in -dir, if there is one: its listening sockets, and once it has ended all else; SIGUSR2 makes it start one")
	flags.DurationVar(&cfg.Linger, "takeover-linger", dataplane.DefaultLinger, "how long what lasts may go on in a process whose place was taken, beside the one that serves, at most 24h; 0: 3 s, for which new connections wait")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	unknown, err := fromEnvironment(flags, environ)
	if err != nil {
		return nil, err
	}
	if *showVersion {
		fmt.Println(version)
		return nil, nil
	}
	if err := telemetry.CheckLogging(*level, *format); err != nil {
		return nil, err
	}
	cfg.Logger = telemetry.NewLogger(os.Stderr, *level, *format, "bailiwick-edge", cfg.Name)
	if *format == "json" {
		log = cfg.Logger
	}
	for _, name := range unknown {
		cfg.Logger.Warn("environment names no option of an edge", "name", name)
	}
	if flags.NArg() > 0 {
		return log, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := negative(flags); err != nil {
		return log, err
	}
	if *acmeRoots != "" {
		if cfg.ACME.RootsPEM, err = os.ReadFile(*acmeRoots); err != nil {
			return log, fmt.Errorf("read the ACME directory's roots: %w", err)
		}
	}
	if *tracesRoots != "" {
		if cfg.Traces.RootsPEM, err = os.ReadFile(*tracesRoots); err != nil {
			return log, fmt.Errorf("read the roots of the traces' receiver: %w", err)
		}
	}
	if *tracesHeaders != "" {
		raw, err := os.ReadFile(*tracesHeaders)
		if err != nil {
			return log, fmt.Errorf("read the headers for the traces' receiver: %w", err)
		}
		if cfg.Traces.Header, err = headers(string(raw)); err != nil {
			return log, fmt.Errorf("read %s: %w", *tracesHeaders, err)
		}
	}
	if !*cores {
		if err := telemetry.NoCoreDumps(); err != nil {
			return log, err
		}
	}
	for _, text := range list(*public) {
		a, err := netip.ParseAddr(text)
		if err != nil || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return log, fmt.Errorf("-public %q is no address that clients could reach", text)
		}
		cfg.Public = append(cfg.Public, a.Unmap())
	}
	cfg.DNS.Domains = list(*domains)
	cfg.ControlURLs = list(*control)
	if cfg.Inherit, err = inherited(); err != nil {
		return log, err
	}
	cfg.Serving = func() { tell("READY=1") }
	edge, err := dataplane.New(ctx, cfg)
	if err != nil {
		return log, err
	}
	defer replaces(cfg.Logger)()
	ended := make(chan struct{})
	defer close(ended)
	go func() { // a second signal, or a part that never ends, must not keep the process
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
	return log, edge.Run(ctx)
}

// environment is where each option may be said that the command line does not say: -max-streams as BAILIWICK_EDGE_MAX_STREAMS.
const environment = "BAILIWICK_EDGE_"

// fromEnvironment sets options that the command line has not set, and says which names are no option's: a mistake, or what Kubernetes
// tells of a service of this name.
func fromEnvironment(flags *flag.FlagSet, environ []string) (unknown []string, err error) {
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for _, line := range environ {
		variable, value, _ := strings.Cut(line, "=")
		name, ours := strings.CutPrefix(variable, environment)
		if !ours {
			continue
		}
		name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
		switch {
		case flags.Lookup(name) == nil:
			unknown = append(unknown, variable)
			continue
		case given[name]:
			continue
		}
		if err := flags.Set(name, value); err != nil { // nothing of the value: whoever mistakes one for another may have put a secret there
			return nil, fmt.Errorf("%s in the environment is no value of -%s: %s", variable, name, flags.Lookup(name).Usage)
		}
	}
	return unknown, nil
}

// headers reads lines of "NAME: VALUE". An error says which line, and nothing of it: a secret stands there.
func headers(text string) (http.Header, error) {
	out := http.Header{}
	n := 0
	for line := range strings.Lines(text) {
		if n++; strings.TrimSpace(line) == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("line %d is not NAME: VALUE", n)
		}
		out.Add(name, value)
	}
	return out, nil
}

// list reads what is separated by commas.
func list(text string) (out []string) {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// negative refuses an option below nothing: it would silently stand for its default.
func negative(flags *flag.FlagSet) (err error) {
	flags.Visit(func(f *flag.Flag) {
		below := false
		switch v := f.Value.(flag.Getter).Get().(type) {
		case int:
			below = v < 0
		case int64:
			below = v < 0
		case float64:
			below = !(v >= 0) // nor what is no number
		case time.Duration:
			below = v < 0
		}
		if below && err == nil {
			err = fmt.Errorf("-%s %s is less than nothing; leave it out for its default", f.Name, f.Value)
		}
	})
	return err
}
