package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/manifest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// described is the form of describe for programs.
type described struct {
	Resource   json.RawMessage `json:"resource"`
	Created    uint64          `json:"created_index"`
	Changed    uint64          `json:"changed_index"`
	Writes     uint64          `json:"writes"`
	RefersTo   []reference     `json:"refers_to"`
	ReferredBy []reference     `json:"referred_by"`
	Holders    []holder        `json:"holders"`
	Notes      []string        `json:"notes"`
	Changes    []audited       `json:"changes"`
}
type reference struct {
	Kind    string `json:"kind"`
	Name    string `json:"name"`
	Field   string `json:"field"`
	Missing bool   `json:"missing"`
}
type holder struct {
	Edge   string `json:"edge"`
	Region string `json:"region"`
	Status string `json:"status"`
	InSync bool   `json:"in_sync"`
}

func references(list []*adminv1.Reference) []reference {
	out := []reference{}
	for _, r := range list {
		out = append(out, reference{r.GetKind(), r.GetName(), r.GetField(), r.GetMissing()})
	}
	return out
}

func (a *app) describeCommand() *cobra.Command {
	var zoneName, since string
	c := &cobra.Command{Use: "describe KIND NAME", Short: "Show all that is known of one resource: who refers to it, which edges hold it, who changed it", Args: cobra.ExactArgs(2), ValidArgs: kindNames(),
		Long: `Show all that is known of one resource: itself, what it refers to and what refers to it, the edges that must hold it and
whether each does, what waits for it, and who changed it in the last day (--since), from the zone's verified log.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := kindOf(args[0])
			if err != nil {
				return err
			}
			out := described{Notes: []string{}, Changes: []audited{}, Holders: []holder{}}
			var r *adminv1.Resource
			zone := zoneName
			err = a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				if zone == "" { // the zone whose node answers is the one whose log is read
					zones, err := c.zones(ctx)
					if err != nil {
						return err
					}
					zone = zones[0].name
				}
				call := func(ctx context.Context, n api) (*adminv1.DescribeResponse, error) {
					return n.Describe(ctx, &adminv1.DescribeRequest{Kind: k.Plural, Name: args[1]})
				}
				var resp *adminv1.DescribeResponse
				var err error
				switch {
				case k.Zonal:
					resp, err = around(ctx, c, zoneName, call)
				case zoneName != "":
					var z = zoneName
					resp, err = around(ctx, c, z, call)
				default:
					resp, err = ask(ctx, c, c.urls, call)
				}
				if err != nil {
					return err
				}
				r = resp.GetResource()
				if k.Zonal && zoneOf(r) != "" {
					zone = zoneOf(r)
				}
				out.Resource, out.Created, out.Changed, out.Writes = manifest.JSON(r), resp.GetCreatedIndex(), resp.GetChangedIndex(), resp.GetWrites()
				out.RefersTo, out.ReferredBy, out.Notes = references(resp.GetRefersTo()), references(resp.GetReferredBy()), append(out.Notes, resp.GetNotes()...)
				for _, h := range resp.GetHolders() {
					out.Holders = append(out.Holders, holder{h.GetEdge(), h.GetRegion(), h.GetStatus(), h.GetInSync()})
				}
				return nil
			})
			if err != nil {
				return err
			}
			if since != "0" && since != "0s" {
				if out.Changes, err = a.changesOf(cmd.Context(), k, r, zone, since); err != nil {
					fmt.Fprintln(a.err, "warning: who changed it is not known now: "+describe(err))
				}
			}
			return a.printDescribed(k, r, out)
		}}
	c.Flags().StringVar(&zoneName, "zone", "", "ask this zone, and read its log")
	c.Flags().StringVar(&since, "since", "24h", "how far back changes are looked for; 0: not at all")
	return c
}

// changesOf reads the zone's log, verified. Of customers it has no names: theirs are left out.
func (a *app) changesOf(ctx context.Context, k manifest.Kind, r *adminv1.Resource, zone, since string) ([]audited, error) {
	out := []audited{}
	trust, err := a.trust(zone, "", nil)
	if err != nil {
		return out, err
	}
	in, done, err := a.bundleOr(ctx, span{zone: zone, from: since, to: "0s"}, "")
	if err != nil {
		return out, err
	}
	defer done()
	v, err := evidence.Read(in, trust, func(n int64, rec evidence.Record) {
		for _, x := range auditOf(n, rec) {
			if slices.ContainsFunc(x.What, func(what string) bool { return tells(what, k.Name, r) }) {
				out = append(out, x)
			}
		}
	})
	if err == nil && v.Total > 0 {
		err = fmt.Errorf("the zone's log is NOT SOUND, %d findings: bailiwick evidence verify lists them", v.Total)
	}
	slices.Reverse(out)
	return out, err
}

// tells says whether a line of the audit is about a resource: "API emea/orders changed", "closure stop".
func tells(what, kind string, r *adminv1.Resource) bool {
	names := []string{r.GetName()}
	if r.GetApi() != nil {
		names = append(names, r.GetApi().GetZone()+"/"+r.GetName())
	}
	for _, name := range names {
		about := strings.ToLower(kind + " " + name)
		if what = strings.ToLower(what); what == about || strings.HasPrefix(what, about+" ") || strings.HasPrefix(what, about+",") {
			return true
		}
	}
	return false
}

func (a *app) printDescribed(k manifest.Kind, r *adminv1.Resource, out described) error {
	text, err := manifest.YAML([]*adminv1.Resource{r})
	if err != nil {
		return err
	}
	return a.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "%s\n%s of its group since index %d, last written at %d, %d times in all\n", text, k.Name, out.Created, out.Changed, out.Writes)
		for _, n := range out.Notes {
			fmt.Fprintln(w, "note: "+legible(n))
		}
		table := func(title string, refs []reference) {
			if len(refs) == 0 {
				return
			}
			fmt.Fprintln(w)
			var lines [][]string
			for _, x := range refs {
				name := x.Name
				if x.Missing {
					name += " (missing)"
				}
				lines = append(lines, []string{x.Kind, name, x.Field})
			}
			rows(w, title+" NAME FIELD", lines)
		}
		table("REFERS-TO", out.RefersTo)
		table("REFERRED-BY", out.ReferredBy)
		if len(out.Holders) > 0 {
			fmt.Fprintln(w)
			var lines [][]string
			for _, h := range out.Holders {
				in := "no"
				if h.InSync {
					in = "yes"
				}
				lines = append(lines, []string{h.Edge, h.Region, h.Status, in})
			}
			rows(w, "HELD-BY REGION STATUS IN-SYNC", lines)
		}
		if len(out.Changes) > 0 {
			fmt.Fprintln(w)
			var lines [][]string
			for _, x := range out.Changes {
				at, err := time.Parse(time.RFC3339, x.At)
				if err != nil {
					at = time.Time{}
				}
				lines = append(lines, []string{at.UTC().Format(time.RFC3339), x.Who, x.Call, strings.Join(x.What, "; ")})
			}
			rows(w, "CHANGED-AT BY CALL WHAT", lines)
		}
	})
}
