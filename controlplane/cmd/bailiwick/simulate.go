package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/apikey"
)

type course struct {
	Host     string         `json:"host"`
	API      string         `json:"api"`
	Policy   string         `json:"policy"`
	Home     string         `json:"home"`
	Outcome  string         `json:"outcome"`
	ServedBy string         `json:"served_by"`
	Basis    string         `json:"basis"`
	Why      string         `json:"why"`
	KeyWhy   string         `json:"key_why"`
	Passed   []courseRegion `json:"passed"`
	LedTo    []string       `json:"led_to"`
	Drain    string         `json:"drain"` // why home is drained; "": it is not
}
type courseRegion struct {
	Region    string `json:"region"`
	Permitted bool   `json:"permitted"`
	Down      bool   `json:"down"`
	Basis     string `json:"basis"`
	Why       string `json:"why"`
	Drain     string `json:"drain"`
}

func coursesOf(r *adminv1.SimulateResponse) []course {
	out := []course{}
	for _, c := range r.GetCourses() {
		one := course{Host: c.GetHost(), API: c.GetApi(), Policy: c.GetPolicy(), Home: c.GetHome(), Outcome: c.GetOutcome(), ServedBy: c.GetServedBy(), Basis: c.GetBasis(),
			Why: c.GetWhy(), KeyWhy: c.GetKeyWhy(), Passed: []courseRegion{}, LedTo: append([]string{}, c.GetLedTo()...), Drain: c.GetDrain()}
		for _, p := range c.GetPassed() {
			one.Passed = append(one.Passed, courseRegion{p.GetRegion(), p.GetPermitted(), p.GetDown(), p.GetBasis(), p.GetWhy(), p.GetDrain()})
		}
		out = append(out, one)
	}
	return out
}

func (a *app) explainCommand() *cobra.Command {
	req := &adminv1.SimulateRequest{}
	var key string
	c := &cobra.Command{Use: "explain --host HOST [--key KEY] [--from REGION] [--down REGION,...]", Short: "Say who serves a request, on which legal basis, and why each other region does not", Args: cobra.NoArgs,
		Long: `Say who serves a request, on which legal basis, and why each other region does not, by the rules that the host's zone
has adopted less its closures. --key takes a key or its id; of a key only the id leaves this machine.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req.KeyId = key
			if _, id, ok := apikey.Parse(key); ok {
				req.KeyId = id
			} else if strings.HasPrefix(key, "bw_") {
				return misuse("--key is no key: its checksum does not fit")
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.SimulateResponse, error) { return n.Simulate(ctx, req) })
				if err != nil {
					return err
				}
				out := coursesOf(resp)
				return a.print(out, func(w io.Writer) {
					for _, c := range out {
						printCourse(w, c)
					}
				})
			})
		}}
	c.Flags().StringVar(&req.Host, "host", "", "host that is asked")
	c.Flags().StringVar(&key, "key", "", "key that is presented, or its id")
	c.Flags().StringVar(&req.From, "from", "", "region that accepts the request; default: each that may")
	c.Flags().StringSliceVar(&req.Down, "down", nil, "regions whose upstreams are down")
	must(c.MarkFlagRequired("host"))
	return c
}

func printCourse(w io.Writer, c course) {
	served := "served by " + c.ServedBy
	if c.ServedBy == "" {
		served = "not served (" + c.Outcome + ")"
	}
	fmt.Fprintf(w, "%s accepted by %s: %s\n  %s\n", c.Host, c.Home, served, c.Why)
	if c.KeyWhy != "" && c.KeyWhy != c.Why {
		fmt.Fprintf(w, "  %s\n", c.KeyWhy)
	}
	if c.Drain != "" {
		to := "nowhere else: no other region of its zone is up and not drained"
		if len(c.LedTo) > 0 {
			to = "to " + strings.Join(c.LedTo, ", ")
		}
		fmt.Fprintf(w, "  %s is drained (%s): DNS leads its clients %s; what it accepts all the same is served as said above\n", c.Home, c.Drain, to)
	}
	var lines [][]string
	for _, p := range c.Passed {
		why := p.Why
		if p.Drain != "" {
			why += "; drained for DNS (" + p.Drain + "), which closes no relay"
		}
		lines = append(lines, []string{p.Region, yes(p.Permitted), yes(p.Down), p.Basis, why})
	}
	if len(lines) > 0 {
		rows(w, "PASSED PERMITTED DOWN BASIS WHY", lines)
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (a *app) policyCommand() *cobra.Command {
	req := &adminv1.SimulateRequest{}
	c := &cobra.Command{Use: "simulate --down REGION,...", Short: "Show for every host who would serve it if these regions were down", Args: cobra.NoArgs,
		Long: `Show for every host and every region that accepts its requests who would serve them if the upstreams of these regions
were down, on which legal basis, and where DNS would lead clients if the accepting edges were gone as well. It follows
what each zone has adopted less its closures, and looks at no health: nothing is changed by it. Of drains, which move
clients and close no relay, it says which accepting regions are drained, and leads clients to no drained region while
there is another.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.SimulateResponse, error) { return n.Simulate(ctx, req) })
				if err != nil {
					return err
				}
				out := []course{}
				for _, zone := range sorted(answers) {
					out = append(out, coursesOf(answers[zone])...)
				}
				return a.print(out, func(w io.Writer) {
					var lines [][]string
					for _, c := range out {
						var refused []string
						for _, p := range c.Passed {
							if !p.Permitted {
								refused = append(refused, p.Region)
							}
						}
						home := c.Home
						if c.Drain != "" {
							home += " (drained)"
						}
						lines = append(lines, []string{c.Host, home, c.Outcome, c.ServedBy, c.Basis, strings.Join(refused, ","), strings.Join(c.LedTo, ",")})
					}
					rows(w, "HOST ACCEPTED-BY OUTCOME SERVED-BY BASIS REFUSED EDGES-GONE-LED-TO", lines)
				})
			})
		}}
	c.Flags().StringSliceVar(&req.Down, "down", nil, "regions whose upstreams are down")
	must(c.MarkFlagRequired("down"))
	return group("policy", "What policies would say", c)
}
