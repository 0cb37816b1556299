// Command campaign runs a whole sandbox under load while it breaks it, one seeded fault after another, and then
// holds it to the law: per customer, completed at the client ≤ counted ≤ answered by upstreams; equal where
// nothing was in flight at a kill; nothing counted twice; what is lost is reported; a strict quota never exceeded.
//
//	go run ./e2e/campaign -seed 1 -requests 1000000 -faults 300
//
// It needs the programs in bin/. On Linux it runs in a network and mount table of its own; where those are not
// allowed the faults that need them are left out, and it says so. It owns the processes it starts and nothing
// else. It ends with a table, a JSON summary (-json) and status 1 if the law was broken.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"time"

	"bailiwick/e2e/harness"
	"bailiwick/e2e/netlab"
)

type options struct {
	seed     uint64
	requests int64
	faults   int
	rate     int
	minutes  float64
	only     string
	json     string
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "campaign:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("campaign", flag.ContinueOnError)
	flags.Uint64Var(&o.seed, "seed", 0, "of all choices; 0: one of its own, which is printed")
	flags.Int64Var(&o.requests, "requests", 1_000_000, "at least so many requests")
	flags.IntVar(&o.faults, "faults", 300, "at least so many faults")
	flags.IntVar(&o.rate, "rate", 1500, "requests a second at most")
	flags.Float64Var(&o.minutes, "minutes", 120, "of load at most; fewer requests or faults than asked for by then is a failure")
	flags.StringVar(&o.only, "only", "", "kinds of faults, comma separated; empty: all")
	flags.StringVar(&o.json, "json", "", "file for the summary")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || o.requests < 1 || o.faults < 0 || o.rate < 1 {
		return errors.New("see -help: counts and rate must be positive")
	}
	if o.seed == 0 {
		o.seed = rand.Uint64()
		args = append(args, "-seed", fmt.Sprint(o.seed))
	}
	if !netlab.Inside() {
		cmd := netlab.Command(args...)
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		err := cmd.Start()
		if err == nil {
			var exit *exec.ExitError
			if err = cmd.Wait(); errors.As(err, &exit) {
				return errors.New("the law was broken; see above")
			}
			return err
		}
		fmt.Fprintf(out, "no namespace here (%v): nothing is partitioned and no disk fills\n", err)
	} else if err := netlab.Up(); err != nil {
		return err
	}
	return campaign(o, out)
}

// summary is what -json writes.
type summary struct {
	Seed      uint64             `json:"seed"`
	Requests  int64              `json:"requests"`
	Faults    int                `json:"faults"`
	Seconds   float64            `json:"seconds"`
	SettledIn float64            `json:"settled_in_seconds"`
	Kinds     map[string]*tally  `json:"kinds"`
	Customers []account          `json:"customers"`
	Breaches  []string           `json:"breaches"`
	LeftOut   map[string]string  `json:"left_out,omitempty"`
	Measures  map[string]float64 `json:"measures,omitempty"`
	Closed    int                `json:"epochs_closed_by_operator"`
}

type tally struct {
	Injected int `json:"injected"`
	Skipped  int `json:"skipped"` // found nothing to break
	Breaches int `json:"breaches"`
}

func campaign(o options, out io.Writer) error {
	fmt.Fprintf(out, "campaign: -seed %d -requests %d -faults %d -rate %d\n", o.seed, o.requests, o.faults, o.rate)
	var s summary
	went := harness.Main(out, func(t harness.T) {
		w := newWorld(t, o, out)
		s = w.run()
	})
	s.print(out)
	if o.json != "" {
		text, err := json.MarshalIndent(s, "", "  ")
		if err == nil {
			err = os.WriteFile(o.json, append(text, '\n'), 0o644)
		}
		if err != nil {
			return err
		}
	}
	if !went || len(s.Breaches) > 0 {
		return fmt.Errorf("%d breaches, seed %d", len(s.Breaches), o.seed)
	}
	return nil
}

func (s *summary) print(out io.Writer) {
	fmt.Fprintf(out, "\n%d requests, %d faults in %s, all settled %s after the last\n", s.Requests, s.Faults,
		time.Duration(s.Seconds*float64(time.Second)).Round(time.Second), time.Duration(s.SettledIn*float64(time.Second)).Round(100*time.Millisecond))
	fmt.Fprintf(out, "%-26s %9s %8s %9s\n", "FAULT", "INJECTED", "SKIPPED", "BREACHES")
	for _, name := range sortedKeys(s.Kinds) {
		k := s.Kinds[name]
		fmt.Fprintf(out, "%-26s %9d %8d %9d\n", name, k.Injected, k.Skipped, k.Breaches)
	}
	fmt.Fprintf(out, "%-12s %-5s %9s %9s %9s %9s %9s  %s\n", "CUSTOMER", "ZONE", "SENT", "UNHEARD", "COMPLETED", "COUNTED", "ANSWERED", "LAW")
	for _, c := range s.Customers {
		fmt.Fprintf(out, "%-12s %-5s %9d %9d %9d %9d %9d  %s\n", c.Name, c.Zone, c.Sent, c.Unheard, c.Completed, c.Counted, c.Answered, cmp.Or(c.Breach, c.Law))
	}
	for _, m := range sortedKeys(s.Measures) {
		fmt.Fprintf(out, "%s: %.0f\n", m, s.Measures[m])
	}
	for kind, why := range s.LeftOut {
		fmt.Fprintf(out, "left out: %s: %s\n", kind, why)
	}
	for _, b := range s.Breaches {
		fmt.Fprintln(out, "BREACH:", strings.TrimSpace(b))
	}
	if len(s.Breaches) == 0 {
		fmt.Fprintln(out, "the law holds")
	}
}
