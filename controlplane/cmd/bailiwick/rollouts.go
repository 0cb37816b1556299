package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// rollout is how a change of the catalog goes out to edges.
type rollout struct {
	Name    string        `json:"name"`
	State   string        `json:"state"`
	Why     string        `json:"why,omitempty"`
	Edge    string        `json:"edge,omitempty"`
	API     string        `json:"api,omitempty"`
	Reason  string        `json:"reason,omitempty"`
	Changes []string      `json:"changes"`
	Changed int           `json:"changed"`
	Base    uint64        `json:"base_index"`
	Target  uint64        `json:"target_index"`
	Began   string        `json:"began_at"`
	Since   string        `json:"since"`
	Zones   []rolloutZone `json:"zones"`
}
type rolloutZone struct {
	Zone  string   `json:"zone"`
	Rings []string `json:"rings"`
	Ring  int      `json:"ring"`
	Word  string   `json:"word"`
	Why   string   `json:"why,omitempty"`
	Edge  string   `json:"edge,omitempty"`
}

func rolloutOf(r *adminv1.Rollout) rollout {
	out := rollout{r.GetName(), r.GetState(), r.GetWhy(), r.GetEdge(), r.GetApi(), r.GetReason(), r.GetChanges(), int(r.GetChanged()), r.GetBaseIndex(), r.GetTargetIndex(),
		clock(r.GetBeganAt()), clock(r.GetSince()), []rolloutZone{}}
	for _, z := range r.GetZones() {
		out.Zones = append(out.Zones, rolloutZone{z.GetZone(), z.GetRings(), int(z.GetRing()), z.GetWord(), z.GetWhy(), z.GetEdge()})
	}
	return out
}

func (r rollout) ended() bool { return r.State == "done" || r.State == "rolled-back" }

// line says in one sentence where it is.
func (r rollout) line() string {
	text := r.Name + " " + r.State
	if r.Why != "" {
		text += " " + r.Why
	}
	if r.Edge != "" {
		text += " at " + r.Edge
	}
	if r.API != "" {
		text += ", API " + r.API
	}
	var zones []string
	for _, z := range r.Zones {
		at := "done"
		if z.Ring < len(z.Rings) {
			at = fmt.Sprintf("ring %d of %d (%s) %s", z.Ring+1, len(z.Rings), z.Rings[z.Ring], z.Word)
		}
		zones = append(zones, z.Zone+": "+at)
	}
	if len(zones) > 0 && !r.ended() {
		text += "; " + strings.Join(zones, "; ")
	}
	return legible(text)
}

// bar draws how much of all rings is done.
func (r rollout) bar(width int) string {
	done, all := 0, 0
	for _, z := range r.Zones {
		done, all = done+min(z.Ring, len(z.Rings)), all+len(z.Rings)
	}
	if r.State == "done" {
		done, all = 1, 1
	}
	full := 0
	if all > 0 {
		full = width * done / all
	}
	return "[" + strings.Repeat("█", full) + strings.Repeat("·", width-full) + "]"
}

func rollouts(ctx context.Context, c *client) ([]rollout, error) {
	resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.ListRolloutsResponse, error) {
		return n.ListRollouts(ctx, &adminv1.ListRolloutsRequest{})
	})
	out := []rollout{}
	for _, r := range resp.GetRollouts() {
		out = append(out, rolloutOf(r))
	}
	return out, err
}

// theRollout is the one of a name; without one the latest.
func theRollout(ctx context.Context, c *client, name string) (rollout, error) {
	all, err := rollouts(ctx, c)
	if err != nil {
		return rollout{}, err
	}
	i := 0
	if name != "" {
		i = slices.IndexFunc(all, func(r rollout) bool { return r.Name == name })
	}
	if i < 0 || len(all) == 0 {
		return rollout{}, fault.New(fault.NotFound, "ROLLOUT_NOT_FOUND", "there is no roll-out %s: the last 50 that ended are kept", or(name, "yet"))
	}
	return all[i], nil
}

func (a *app) rolloutCommand() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the roll-out under way and those that ended", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				all, err := rollouts(ctx, c)
				if err != nil {
					return err
				}
				return a.print(all, func(w io.Writer) {
					var lines [][]string
					for _, r := range all {
						lines = append(lines, []string{r.Name, r.State, r.Why, r.Edge, r.API, fmt.Sprint(r.Changed), r.Began, r.Since, r.Reason})
					}
					rows(w, "NAME STATE WHY EDGE API CHANGED BEGAN SINCE REASON", lines)
				})
			})
		}}
	get := &cobra.Command{Use: "get [NAME]", Short: "Show one roll-out, the latest without a name", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				r, err := theRollout(ctx, c, strings.Join(args, ""))
				if err != nil {
					return err
				}
				return a.printRollout(r)
			})
		}}
	var patience time.Duration
	watch := &cobra.Command{Use: "watch [NAME]", Short: "Follow a roll-out to its end: exit 0 done, 1 taken back or stopped", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.followRollout(cmd.Context(), c, strings.Join(args, ""), patience)
			})
		}}
	watch.Flags().DurationVar(&patience, "wait", 24*time.Hour, "for at most so long")
	return group("rollout", "How changes of the catalog go out to edges, ring by ring", list, get, watch,
		a.steerCommand("pause", "Send it to no further ring; what is bad is taken back all the same"),
		a.steerCommand("resume", "Go on with a paused one, or begin anew with a stopped one"),
		a.steerCommand("abort", "Take it back: documents become what edges hold that it has not reached"),
		a.steerCommand("promote", "Send it to all edges at once"))
}

func (a *app) steerCommand(action, short string) *cobra.Command {
	var reason string
	c := &cobra.Command{Use: action + " NAME --reason TEXT", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.SteerRolloutResponse, error) {
					return n.SteerRollout(ctx, &adminv1.SteerRolloutRequest{Name: args[0], Action: action, Reason: reason})
				})
				if err != nil {
					return err
				}
				return a.printRollout(rolloutOf(resp.GetRollout()))
			})
		}}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	must(c.MarkFlagRequired("reason"))
	return c
}

func (a *app) printRollout(r rollout) error {
	return a.print(r, func(w io.Writer) {
		fmt.Fprintln(w, r.line())
		if r.Reason != "" {
			fmt.Fprintf(w, "  reason: %s\n", legible(r.Reason))
		}
		for _, c := range r.Changes {
			fmt.Fprintf(w, "  changes %s\n", legible(c))
		}
		if more := r.Changed - len(r.Changes); more > 0 {
			fmt.Fprintf(w, "  and %d more\n", more)
		}
		for _, z := range r.Zones {
			for i, ring := range z.Rings {
				mark := "·"
				if i < z.Ring {
					mark = "✓"
				} else if i == z.Ring && !r.ended() {
					mark = "→"
				}
				fmt.Fprintf(w, "  %s %s %s\n", mark, z.Zone, legible(ring))
			}
		}
	})
}

// errTakenBack is why apply --wait and rollout watch fail although the call did not.
var errTakenBack = errors.New("the roll-out did not reach all edges")

// followRollout shows a roll-out until it ends: a bar on a terminal, else a line for each change.
func (a *app) followRollout(ctx context.Context, c *client, name string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	last := ""
	for {
		r, err := theRollout(ctx, c, name)
		switch {
		case ctx.Err() != nil:
			return fault.New(fault.Unavailable, "ROLLOUT_UNDER_WAY", "the roll-out has not ended within %s: %s", patience, or(last, "nothing is known of it"))
		case err != nil && fault.KindOf(err) != fault.Unavailable:
			return err
		case err == nil:
			name = r.Name
			if line := r.line(); line != last {
				last = line
				if a.live() {
					fmt.Fprintf(a.err, "\r\x1b[K%s %s", r.bar(24), line)
				} else {
					fmt.Fprintln(a.err, line)
				}
			}
			if r.ended() || r.State == "stopped" {
				if a.live() {
					fmt.Fprintln(a.err)
				}
				if err := a.printRollout(r); err != nil {
					return err
				}
				if r.State != "done" {
					return fmt.Errorf("%w: %s", errTakenBack, r.line())
				}
				return nil
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}
