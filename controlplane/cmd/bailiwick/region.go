package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

const (
	// progressEvery is how often a drain is looked at; edges report every 5 s, and at once when they hold a new table.
	progressEvery = time.Second
	// waitFor is how long --wait waits unless told otherwise: edges know within a second, and DNS is quick with it.
	waitFor = 2 * time.Minute
)

func (a *app) regionCommand() *cobra.Command {
	var reason string
	var wait bool
	var patience time.Duration
	drain := &cobra.Command{Use: "drain NAME --reason TEXT", Short: "Lead clients elsewhere: DNS names the region no more, and who comes all the same is served", Args: cobra.ExactArgs(1),
		Long: `Lead clients elsewhere. DNS answers of the region's zone leave it out, unless no other region is well; requests that come
all the same are served, and the region still takes over for others. It is a change of the zone
and needs the quorum of that zone alone, whatever became of the catalog. With --wait it goes on until every connected edge of the zone knows and none names the region, and shows what still comes there.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return misuse("drain needs --reason: those who find the region empty will ask")
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.drain(ctx, c, args[0], reason, wait, patience)
			})
		}}
	drain.Flags().StringVar(&reason, "reason", "", "why, for whoever looks")
	undrain := &cobra.Command{Use: "undrain NAME", Short: "Let DNS name a drained region again, by and by", Args: cobra.ExactArgs(1),
		Long: `Let DNS name a drained region again. At first a tenth of the answers that would name it do; within a minute (-dns-ramp of
the edges) all do. Where no other region is well it is named at once. With --wait it goes on until all do.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.undrain(ctx, c, args[0], wait, patience)
			})
		}}
	for _, cmd := range []*cobra.Command{drain, undrain} {
		cmd.Flags().BoolVar(&wait, "wait", false, "go on until every connected edge of the zone does so, and show how far it is")
		cmd.Flags().DurationVar(&patience, "timeout", waitFor, "how long to wait")
	}
	list := &cobra.Command{Use: "list", Short: "List regions: whether edges take them for well, DNS names them, and what happens there", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				states, err := a.regions(ctx, c)
				if err != nil {
					return err
				}
				return a.printRegions(states)
			})
		}}
	get := &cobra.Command{Use: "get NAME", Short: "Show one region, and which edge sees it how since when", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				r, _, err := a.region(ctx, c, args[0])
				if err != nil {
					return err
				}
				return a.printRegion(r)
			})
		}}
	return group("region", "Regions and where clients are led", filtered(list, &a.filter), get, drain, undrain)
}

// regions asks each zone, which alone knows its edges.
func (a *app) regions(ctx context.Context, c *client) ([]*adminv1.RegionState, error) {
	answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.RegionsResponse, error) {
		return n.Regions(ctx, &adminv1.RegionsRequest{Filter: a.filter})
	})
	if err != nil {
		return nil, err
	}
	var out []*adminv1.RegionState
	for _, zoneName := range sorted(answers) {
		out = append(out, answers[zoneName].GetRegions()...)
	}
	return out, nil
}

// region is one, and how many requests its zone's edges have accepted in all.
func (a *app) region(ctx context.Context, c *client, name string) (r *adminv1.RegionState, zone int64, err error) {
	states, err := a.regions(ctx, c)
	if err != nil {
		return nil, 0, err
	}
	for _, s := range states {
		if s.GetName() == name {
			r = s
		}
	}
	if r == nil {
		return nil, 0, fault.New(fault.NotFound, "REGION_NOT_FOUND", "no zone that answers has a region %q", name)
	}
	for _, s := range states {
		if s.GetZone() == r.GetZone() {
			zone += s.GetAccepted()
		}
	}
	return r, zone, nil
}

// regionState is the form of region list and region get for programs: each field is always there.
type regionState struct {
	Name           string       `json:"name"`
	Zone           string       `json:"zone"`
	ControlOnly    bool         `json:"control_only"`
	Verdict        string       `json:"verdict"`         // up, down, drained, unknown: what most edges say; "" of a control-only one
	Drain          string       `json:"drain"`           // why it is drained; "": it is not
	Edges          int32        `json:"edges"`           // registered in it
	EdgesConnected int32        `json:"edges_connected"` // of them
	EdgesReporting int32        `json:"edges_reporting"` // of the zone: all have to know of a drain
	EdgesInSync    int32        `json:"edges_in_sync"`   // of those, that hold the region as it stands
	DNSEdges       int32        `json:"dns_edges"`       // of the zone, that answer DNS
	DNSNaming      int32        `json:"dns_naming"`      // of those, that name it
	DNSShare       int32        `json:"dns_share"`       // percent of the answers that name it while it returns, at the least; 100: all
	Accepted       int64        `json:"accepted"`        // requests since its edges' start
	RelaysOut      int32        `json:"relays_out"`      // under way, served elsewhere
	RelaysIn       int32        `json:"relays_in"`       // under way, served here for others
	Views          []regionView `json:"views"`
}
type regionView struct {
	Edge    string `json:"edge"`
	Region  string `json:"region"` // the observer's
	Healthy bool   `json:"healthy"`
	Why     string `json:"why"`
	Since   string `json:"since"`
}

func regionOf(r *adminv1.RegionState) regionState {
	out := regionState{Name: r.GetName(), Zone: r.GetZone(), ControlOnly: r.GetControlOnly(), Verdict: r.GetState(), Drain: r.GetDrain(), Edges: r.GetEdges(), EdgesConnected: r.GetEdgesConnected(),
		EdgesReporting: r.GetEdgesAlive(), EdgesInSync: r.GetEdgesAcked(), DNSEdges: r.GetNames(), DNSNaming: r.GetNaming(), DNSShare: r.GetShare(),
		Accepted: r.GetAccepted(), RelaysOut: r.GetRelaysOut(), RelaysIn: r.GetRelaysIn(), Views: []regionView{}}
	if out.DNSShare == 0 {
		out.DNSShare = 100
	}
	for _, v := range r.GetViews() {
		out.Views = append(out.Views, regionView{v.GetEdge(), v.GetRegion(), v.GetHealthy(), v.GetWhy(), clock(v.GetSince())})
	}
	return out
}

// verdict is the zone's, with what those say that find the region down.
func verdict(r *adminv1.RegionState) string {
	dead, why := 0, ""
	for _, v := range r.GetViews() {
		if !v.GetHealthy() {
			dead++
			why = v.GetWhy()
		}
	}
	if dead == 0 {
		return r.GetState()
	}
	return fmt.Sprintf("%s (down by %d of %d edges: %s)", r.GetState(), dead, len(r.GetViews()), why)
}

// returning says how far a region is on its way back into the answers.
func returning(r *adminv1.RegionState) string {
	if r.GetShare() == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d%% of the answers, and more by and by)", r.GetShare())
}

func of(n, all int32) string { return fmt.Sprintf("%d of %d", n, all) }

func (a *app) printRegions(states []*adminv1.RegionState) error {
	out := []regionState{}
	for _, r := range states {
		out = append(out, regionOf(r))
	}
	return a.print(out, func(w io.Writer) {
		var lines [][]string
		for _, r := range states {
			led := "control only"
			if !r.GetControlOnly() {
				led = "by " + of(r.GetNaming(), r.GetNames()) + returning(r)
			}
			lines = append(lines, []string{r.GetName(), r.GetZone(), verdict(r), of(r.GetEdgesConnected(), r.GetEdges()), led,
				strconv.FormatInt(r.GetAccepted(), 10), fmt.Sprintf("%d out, %d in", r.GetRelaysOut(), r.GetRelaysIn()), r.GetDrain()})
		}
		rows(w, "REGION ZONE VERDICT EDGES NAMED ACCEPTED RELAYS DRAINED", lines)
	})
}

func (a *app) printRegion(r *adminv1.RegionState) error {
	return a.print(regionOf(r), func(w io.Writer) {
		fmt.Fprintf(w, "%s of zone %s: %s\n", r.GetName(), r.GetZone(), verdict(r))
		if r.GetDrain() != "" {
			fmt.Fprintf(w, "drained: %s\n", legible(r.GetDrain()))
		}
		fmt.Fprintf(w, "%s of its edges are connected; %s of the zone's hold it as it stands, %s name it in DNS%s\n",
			of(r.GetEdgesConnected(), r.GetEdges()), of(r.GetEdgesAcked(), r.GetEdgesAlive()), of(r.GetNaming(), r.GetNames()), returning(r))
		fmt.Fprintf(w, "%d requests accepted since its edges started; under way: %d served elsewhere, %d served for others\n\n", r.GetAccepted(), r.GetRelaysOut(), r.GetRelaysIn())
		var lines [][]string
		for _, v := range r.GetViews() {
			seen := "down"
			if v.GetHealthy() {
				seen = "well"
			}
			lines = append(lines, []string{v.GetEdge(), v.GetRegion(), seen, clock(v.GetSince()), v.GetWhy()})
		}
		rows(w, "OBSERVER FROM SEES SINCE WHY", lines)
	})
}

// drain writes the zone's own word, which needs that zone's quorum alone. The etag makes it fail if somebody else changes
// it meanwhile.
func (a *app) drain(ctx context.Context, c *client, name, reason string, wait bool, patience time.Duration) error {
	r, z, err := a.regionAndZone(ctx, c, name)
	if err != nil {
		return err
	}
	doc := &adminv1.Resource{Name: name, Spec: &adminv1.Resource_Drain{Drain: &adminv1.Drain{Zone: r.GetZone(), Reason: reason}}}
	got, err := ask(ctx, c, z.urls, func(ctx context.Context, n api) (*adminv1.GetResponse, error) {
		return n.Get(ctx, &adminv1.GetRequest{Kind: "drains", Name: name})
	})
	switch {
	case err == nil:
		doc.Etag = got.GetResource().GetEtag()
	case fault.KindOf(err) != fault.NotFound:
		return err
	}
	req := &adminv1.ApplyRequest{Resources: []*adminv1.Resource{doc}, RequestId: rand.Text()}
	if _, err := ask(ctx, c, z.urls, func(ctx context.Context, n api) (*adminv1.ApplyResponse, error) { return n.Apply(ctx, req) }); err != nil {
		return err
	}
	if wait {
		if err := a.follow(ctx, c, name, reason, patience); err != nil {
			return err
		}
	}
	return a.done("Region", name, "drained")
}

// undrain takes back what the zone said, and what a manifest said in the catalog. Only for the latter the catalog has to
// be there.
func (a *app) undrain(ctx context.Context, c *client, name string, wait bool, patience time.Duration) error {
	_, z, err := a.regionAndZone(ctx, c, name)
	if err != nil {
		return err
	}
	req := &adminv1.DeleteRequest{Kind: "drains", Name: name, RequestId: rand.Text()}
	_, err = ask(ctx, c, z.urls, func(ctx context.Context, n api) (*adminv1.DeleteResponse, error) { return n.Delete(ctx, req) })
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	r, _, err := a.region(ctx, c, name)
	if err != nil {
		return err
	}
	if r.GetDrain() != "" {
		if err := a.undrainCatalog(ctx, c, name); err != nil {
			return err
		}
	}
	if wait {
		if err := a.follow(ctx, c, name, "", patience); err != nil {
			return err
		}
	}
	return a.done("Region", name, "undrained")
}

// undrainCatalog changes one field of a region as it stands.
func (a *app) undrainCatalog(ctx context.Context, c *client, name string) error {
	got, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.GetResponse, error) {
		return n.Get(ctx, &adminv1.GetRequest{Kind: "regions", Name: name})
	})
	if err != nil {
		return err
	}
	r := got.GetResource()
	if r.GetRegion() == nil {
		return fault.New(fault.Internal, "NOT_A_REGION", "the node answers something else than region %s", name)
	}
	r.GetRegion().Drain, r.UpdatedAt = "", nil
	req := &adminv1.ApplyRequest{Resources: []*adminv1.Resource{r}, RequestId: rand.Text()}
	_, err = ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.ApplyResponse, error) { return n.Apply(ctx, req) })
	if fault.KindOf(err) == fault.Unavailable {
		return fmt.Errorf("the catalog drains region %s too, by its manifest, and cannot be changed now: %w", name, err)
	}
	return err
}

func (a *app) regionAndZone(ctx context.Context, c *client, name string) (*adminv1.RegionState, zone, error) {
	r, _, err := a.region(ctx, c, name)
	if err != nil {
		return nil, zone{}, err
	}
	z, err := c.in(ctx, r.GetZone())
	return r, z, err
}

// follow shows how far a drain or its end is, until it is there or patience ends.
func (a *app) follow(ctx context.Context, c *client, name, reason string, patience time.Duration) error {
	p := &progress{out: a.err}
	if f, ok := a.err.(*os.File); ok {
		if info, err := f.Stat(); err == nil {
			p.terminal = info.Mode()&os.ModeCharDevice != 0
		}
	}
	defer p.end()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	end := time.Now().Add(patience)
	for {
		r, zone, err := a.region(ctx, c, name)
		if err != nil {
			return err
		}
		if r.GetDrain() != reason {
			return fault.New(fault.Conflict, "DRAIN_CHANGED", "region %s is now %q: somebody else changed it meanwhile; look at region get %s", name, r.GetDrain(), name)
		}
		if p.look(r, zone) {
			return nil
		}
		if time.Now().After(end) {
			return fault.New(fault.Unavailable, "NOT_YET", "the change is made, and after %s not every edge follows it: %s; see region get %s", patience, p.last, name)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// progress draws one: a bar on a terminal, else a line whenever something is new.
type progress struct {
	out            io.Writer
	terminal       bool
	last           string
	accepted, zone int64 // at the look before
	begun          bool
}

const barWidth = 20

// look says whether it is done.
func (p *progress) look(r *adminv1.RegionState, zone int64) bool {
	there := r.GetNames() - r.GetNaming() // edges whose DNS does as it should
	if r.GetDrain() == "" {
		there = r.GetNaming()
	}
	line := fmt.Sprintf("%s: %s edges know, DNS of %s follows%s", r.GetName(), of(r.GetEdgesAcked(), r.GetEdgesAlive()), of(there, r.GetNames()), returning(r))
	mine, all := r.GetAccepted()-p.accepted, zone-p.zone
	if p.begun && all > 0 && mine >= 0 {
		line += fmt.Sprintf("; %d%% of the zone's requests still come here", 100*mine/all)
	}
	if all != 0 || !p.begun {
		p.accepted, p.zone, p.begun = r.GetAccepted(), zone, true
	}
	line += fmt.Sprintf("; relays: %d out, %d in", r.GetRelaysOut(), r.GetRelaysIn())
	if steps := r.GetEdgesAlive() + r.GetNames(); p.terminal && steps > 0 {
		full := int(barWidth * (r.GetEdgesAcked() + there) / steps)
		fmt.Fprintf(p.out, "\r\x1b[K[%s%s] %s", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), line)
	} else if line != p.last {
		fmt.Fprintln(p.out, line)
	}
	p.last = line
	return r.GetEdgesAcked() == r.GetEdgesAlive() && there == r.GetNames() && r.GetShare() == 0
}

func (p *progress) end() {
	if p.terminal {
		fmt.Fprintln(p.out)
	}
}
