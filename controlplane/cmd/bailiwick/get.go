package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"bailiwick/controlplane/internal/manifest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

func kindNames() []string {
	var names []string
	for _, k := range manifest.Kinds() {
		names = append(names, k.Plural)
	}
	return names
}

func kindOf(text string) (manifest.Kind, error) {
	k, ok := manifest.ParseKind(text)
	if !ok {
		return k, misuse("kind %q is none of %s", text, strings.Join(kindNames(), ", "))
	}
	return k, nil
}

func (a *app) getCommand() *cobra.Command {
	var zoneName, filter string
	var all bool
	c := &cobra.Command{Use: "get KIND [NAME]", Short: "Show resources", Args: cobra.RangeArgs(1, 2), ValidArgs: kindNames(),
		Long: "Show resources: " + strings.Join(kindNames(), ", ") + `.
Lists of customers and closures are those of one zone: that of the first node that answers, of --zone, or with
--all-zones of every zone that answers. An API whose name exists in several zones is called zone/name.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := kindOf(args[0])
			if err != nil {
				return err
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				if len(args) == 2 && filter != "" {
					return misuse("get KIND NAME shows one resource: --filter is for lists")
				}
				if len(args) == 2 {
					return a.getOne(ctx, c, k, args[1], zoneName)
				}
				found, err := list(ctx, a, c, k, zoneName, filter, all)
				if err != nil {
					return err
				}
				return a.printResources(k, found)
			})
		}}
	c.Annotations = map[string]string{hasWide: "yes"}
	c.Flags().StringVar(&zoneName, "zone", "", "ask this zone")
	c.Flags().BoolVar(&all, "all-zones", false, "ask every zone for its customers or closures")
	return filtered(c, &filter)
}

func (a *app) getOne(ctx context.Context, c *client, k manifest.Kind, name, zoneName string) error {
	call := func(ctx context.Context, n api) (*adminv1.GetResponse, error) {
		return n.Get(ctx, &adminv1.GetRequest{Kind: k.Plural, Name: name})
	}
	var resp *adminv1.GetResponse
	var err error
	if k.Zonal || zoneName != "" {
		resp, err = around(ctx, c, zoneName, call)
	} else {
		resp, err = ask(ctx, c, c.urls, call)
	}
	if err != nil {
		return err
	}
	r := resp.GetResource()
	if a.output == "json" {
		return a.print(manifest.JSON(r), nil)
	}
	text, err := manifest.YAML([]*adminv1.Resource{r}) // a table of one row would hide most of it
	if err != nil {
		return err
	}
	_, err = a.out.Write(text)
	return err
}

func list(ctx context.Context, a *app, c *client, k manifest.Kind, zoneName, filter string, all bool) ([]*adminv1.Resource, error) {
	call := func(ctx context.Context, n api) (*adminv1.ListResponse, error) {
		return n.List(ctx, &adminv1.ListRequest{Kind: k.Plural, Filter: filter})
	}
	urls := c.urls
	switch {
	case all && k.Zonal:
		answers, err := everywhere(ctx, a, c, call)
		if err != nil {
			return nil, err
		}
		var out []*adminv1.Resource
		for _, name := range sorted(answers) {
			out = append(out, answers[name].GetResources()...)
		}
		return out, nil
	case zoneName != "":
		z, err := c.in(ctx, zoneName)
		if err != nil {
			return nil, err
		}
		urls = z.urls
	}
	resp, err := ask(ctx, c, urls, call)
	return resp.GetResources(), err
}

func (a *app) printResources(k manifest.Kind, found []*adminv1.Resource) error {
	if a.output == "yaml" {
		text, err := manifest.YAML(found)
		if err != nil {
			return err
		}
		_, err = a.out.Write(text)
		return err
	}
	docs := []json.RawMessage{}
	for _, r := range found {
		docs = append(docs, manifest.JSON(r))
	}
	return a.print(docs, func(w io.Writer) {
		heading, columns := tableOf(k.Name)
		var lines [][]string
		for _, r := range found {
			line := append([]string{r.GetName()}, columns(r)...)
			if a.output == "wide" {
				line = append(line, strings.Join(labelsOf(r), ","))
			}
			lines = append(lines, line)
		}
		if a.output == "wide" {
			heading += " LABELS"
		}
		rows(w, "NAME "+heading, lines)
	})
}

// hasWide marks the commands whose tables have more columns with -o wide.
const hasWide = "wide"

// labelsOf are a resource's, of the kinds that have some.
func labelsOf(r *adminv1.Resource) []string {
	switch r.GetSpec().(type) {
	case *adminv1.Resource_Region:
		return r.GetRegion().GetLabels()
	case *adminv1.Resource_Api:
		return r.GetApi().GetLabels()
	case *adminv1.Resource_Customer:
		return r.GetCustomer().GetLabels()
	}
	return nil
}

func tableOf(kind string) (string, func(*adminv1.Resource) []string) {
	switch kind {
	case "Zone":
		return "JURISDICTION ADMIN", func(r *adminv1.Resource) []string {
			return []string{r.GetZone().GetJurisdiction(), strings.Join(r.GetZone().GetAdminUrls(), ",")}
		}
	case "Region":
		return "ZONE COUNTRY JURISDICTION PROVIDER SERVES", func(r *adminv1.Resource) []string {
			v := r.GetRegion()
			serves := "yes"
			if v.GetControlOnly() {
				serves = "no"
			}
			return []string{v.GetZone(), v.GetCountry(), v.GetJurisdiction(), strings.Trim(v.GetProvider()+"/"+v.GetProviderRegion(), "/"), serves}
		}
	case "LegalBasis":
		return "KIND STATUS EXPIRES SOURCE", func(r *adminv1.Resource) []string {
			v := r.GetLegalBasis()
			return []string{v.GetKind(), v.GetStatus(), v.GetExpires(), v.GetSource()}
		}
	case "Policy":
		return "ZONE WITHIN-ZONE PAIRS", func(r *adminv1.Resource) []string {
			v := r.GetPolicy()
			var pairs []string
			for _, p := range v.GetPairs() {
				pairs = append(pairs, p.GetFrom()+">"+p.GetTo())
			}
			return []string{v.GetZone(), v.GetWithinZone().GetBasis(), strings.Join(pairs, ",")}
		}
	case "API":
		return "ZONE HOSTS POLICY REGIONS", func(r *adminv1.Resource) []string {
			v := r.GetApi()
			var regions []string
			for _, u := range v.GetUpstreams() {
				regions = append(regions, u.GetRegion())
			}
			return []string{v.GetZone(), strings.Join(v.GetHosts(), ","), v.GetPolicy(), strings.Join(regions, ",")}
		}
	case "Product":
		return "APIS BILLS", func(r *adminv1.Resource) []string {
			v := r.GetProduct()
			return []string{strings.Join(v.GetApis(), ","), or(strings.Join(v.GetBillableOutcomes(), ","), "success")}
		}
	case "Plan":
		return "PRODUCTS RATE QUOTA", func(r *adminv1.Resource) []string {
			v := r.GetPlan()
			var rate, quota string
			if l := v.GetRateLimit(); l != nil {
				rate = fmt.Sprintf("%d/s", l.GetRequestsPerSecond())
			}
			if q := v.GetQuota(); q != nil {
				period := q.GetPeriod()
				if q.GetWindow() != nil {
					period = q.GetWindow().AsDuration().String()
				}
				quota = fmt.Sprintf("%d/%s %s", q.GetUnits(), period, q.GetMode())
				if q.GetGracePercent() != 0 {
					quota += fmt.Sprintf("+%d%%", q.GetGracePercent())
				}
			}
			return []string{strings.Join(v.GetProducts(), ","), rate, quota}
		}
	case "Customer":
		return "ZONE STATUS SUBSCRIPTIONS", func(r *adminv1.Resource) []string {
			v := r.GetCustomer()
			var subs []string
			for _, s := range v.GetSubscriptions() {
				subs = append(subs, s.GetName())
			}
			return []string{v.GetZone(), v.GetStatus(), strings.Join(subs, ",")}
		}
	case "Switch":
		return "FEATURE OFF REGION API REASON", func(r *adminv1.Resource) []string {
			v := r.GetSwitch()
			return []string{v.GetFeature(), fmt.Sprint(v.GetOff()), or(v.GetRegion(), "all"), or(v.GetApi(), "all"), v.GetReason()}
		}
	case "Drain":
		return "ZONE REASON", func(r *adminv1.Resource) []string {
			return []string{r.GetDrain().GetZone(), r.GetDrain().GetReason()}
		}
	}
	return "ZONE FROM TO BASIS REASON", func(r *adminv1.Resource) []string {
		v := r.GetClosure()
		return []string{v.GetZone(), v.GetFrom(), v.GetTo(), v.GetBasis(), v.GetReason()}
	}
}

func (a *app) deleteCommand() *cobra.Command {
	var zoneName string
	var how sending
	c := &cobra.Command{Use: "delete KIND NAME", Short: "Delete a resource that nothing else uses", Args: cobra.ExactArgs(2), ValidArgs: kindNames(),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := kindOf(args[0])
			if err != nil {
				return err
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := remove(ctx, c, k, args[1], zoneName, how)
				switch {
				case err != nil:
					return err
				case resp.GetPending() != nil:
					return a.printWaiting([]waiting{waitingOf(resp.GetPending())})
				case resp.GetRollout() != "" && how.wait:
					if err := a.followRollout(cmd.Context(), c, resp.GetRollout(), how.patience); err != nil {
						return err
					}
				case resp.GetRollout() != "":
					return a.done(k.Name, args[1], "deleted, by roll-out "+resp.GetRollout())
				}
				return a.done(k.Name, args[1], "deleted")
			})
		}}
	c.Flags().StringVar(&zoneName, "zone", "", "ask this zone")
	how.flags(c)
	return c
}

func remove(ctx context.Context, c *client, k manifest.Kind, name, zoneName string, how sending) (*adminv1.DeleteResponse, error) {
	id := rand.Text()
	call := func(ctx context.Context, n api) (*adminv1.DeleteResponse, error) {
		return n.Delete(ctx, &adminv1.DeleteRequest{Kind: k.Plural, Name: name, RequestId: id, Now: how.now, Reason: how.reason})
	}
	if k.Zonal || zoneName != "" {
		return around(ctx, c, zoneName, call)
	}
	return ask(ctx, c, c.urls, call)
}

// done tells that something happened.
func (a *app) done(kind, name, what string) error {
	return a.print(map[string]string{"kind": kind, "name": name, "action": what}, func(w io.Writer) {
		fmt.Fprintf(w, "%s %s %s\n", kind, name, what)
	})
}
