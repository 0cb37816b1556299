package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"bailiwick/controlplane/internal/manifest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

func (a *app) applyCommand() *cobra.Command {
	var files []string
	var dry bool
	var how sending
	c := &cobra.Command{Use: "apply -f FILE|DIR|-", Short: "Write the documents of manifests", Args: cobra.NoArgs,
		Long: `Write the documents of manifests. One error refuses all of them. Documents of the catalog are written in one
transaction and the customers and closures of each zone in one.

Changes of the catalog go out to edges ring by ring: to a canary edge in each zone, to its region, then to the others, and
are taken back by themselves if edges refuse them or requests fail. The answer names the roll-out; --wait follows it (exit
1 if it is taken back). What tightens the border goes to all edges at once, and is said so.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				docs, err := a.read(files)
				if err != nil {
					return err
				}
				result, err := send(ctx, c, docs, dry, how)
				if err != nil {
					return err
				}
				if err := a.printApply(result, dry); err != nil || !how.wait || result.Rollout == "" {
					return err
				}
				return a.followRollout(cmd.Context(), c, result.Rollout, how.patience)
			})
		}}
	how.flags(c)
	c.Flags().DurationVar(&how.soak, "soak", 0, "watch each ring for at least so long")
	c.Flags().StringArrayVarP(&files, "file", "f", nil, "manifest file, directory of *.yaml, or - for stdin; may be repeated")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would change, and which flows it opens and closes")
	must(c.MarkFlagRequired("file"))
	return c
}

func (a *app) diffCommand() *cobra.Command {
	var files []string
	var from, to string
	c := &cobra.Command{Use: "diff -f FILE|DIR|- | diff --from REVISION [--to REVISION]", Short: "Say what apply would change, or what changed between two revisions: exit 0 nothing, 2 something, 1 error", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (from == "") == (len(files) == 0) || from == "" && to != "" {
				return misuse("diff needs either -f, or --from and maybe --to")
			}
			if from != "" {
				return a.compare(cmd.Context(), from, to)
			}
			err := a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				docs, err := a.read(files)
				if err != nil {
					return err
				}
				result, err := send(ctx, c, docs, true, sending{})
				if err != nil {
					return err
				}
				if slices.ContainsFunc(result.Changes, func(c change) bool { return c.Action != "unchanged" }) {
					a.exit = exitUsage
				}
				return a.printApply(result, true)
			})
			if err != nil {
				return codedError{err, exitFailure}
			}
			return nil
		}}
	c.Flags().StringArrayVarP(&files, "file", "f", nil, "manifest file, directory of *.yaml, or - for stdin; may be repeated")
	c.Flags().StringVar(&from, "from", "", "a revision of the catalog, from bailiwick history")
	c.Flags().StringVar(&to, "to", "", "another; without it what is now")
	return c
}

// sending is how a change goes out to edges.
type sending struct {
	now, wait bool
	reason    string
	soak      time.Duration
	patience  time.Duration
}

func (s *sending) flags(c *cobra.Command) {
	c.Flags().BoolVar(&s.now, "now", false, "send it to all edges at once, ring or no ring; needs --reason")
	c.Flags().StringVar(&s.reason, "reason", "", "why, for the record")
	c.Flags().BoolVar(&s.wait, "wait", false, "follow the roll-out to its end")
	c.Flags().DurationVar(&s.patience, "wait-for", time.Hour, "for at most so long")
}

// must is for flags named in this file.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (a *app) read(paths []string) ([]manifest.Document, error) {
	var files []string
	for _, p := range paths {
		info, err := os.Stat(p)
		switch {
		case p == "-":
			files = append(files, p)
		case err != nil:
			return nil, fmt.Errorf("read manifest: %w", err)
		case !info.IsDir():
			files = append(files, p)
		default:
			before := len(files)
			for _, pattern := range []string{"*.yaml", "*.yml"} {
				found, err := filepath.Glob(filepath.Join(p, pattern))
				if err != nil {
					return nil, fmt.Errorf("read manifest directory: %w", err)
				}
				files = append(files, found...)
			}
			if len(files) == before {
				return nil, fmt.Errorf("read manifest directory %s: it holds no *.yaml file", p)
			}
			slices.Sort(files[before:])
		}
	}
	var docs []manifest.Document
	var errs []error
	for _, f := range files {
		name, data, err := a.load(f)
		if err != nil {
			return nil, err
		}
		found, err := manifest.Parse(name, data)
		errs = append(errs, err)
		docs = append(docs, found...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, fault.New(fault.Invalid, "MANIFEST_EMPTY", "%s: no document found", strings.Join(paths, ", "))
	}
	return docs, nil
}

func (a *app) load(file string) (name string, data []byte, err error) {
	name, in := "<stdin>", a.in
	if file != "-" {
		name = file
		f, err := os.Open(file)
		if err != nil {
			return name, nil, fmt.Errorf("read manifest: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err = io.ReadAll(io.LimitReader(in, manifest.MaxBytes+1))
	if err != nil {
		return name, nil, fmt.Errorf("read manifest %s: %w", name, err)
	}
	if len(data) > manifest.MaxBytes {
		return name, nil, manifest.TooLarge(name)
	}
	return name, data, nil
}

type applied struct {
	Changes  []change `json:"changes"`
	Warnings []string `json:"warnings"`
	Flows    []flow   `json:"flows"`
	// Pending waits for a second operator and is not made yet.
	Pending []waiting `json:"pending,omitempty"`
	// Rollout takes the change to edges ring by ring; AtOnce says what of it does not wait for that.
	Rollout string   `json:"rollout,omitempty"`
	AtOnce  []string `json:"at_once,omitempty"`
}
type change struct {
	Kind   string        `json:"kind"`
	Name   string        `json:"name"`
	Action string        `json:"action"`
	Fields []fieldChange `json:"fields,omitempty"`
	// Pending is the approval that all of it (proposed) or a part of it waits for.
	Pending string `json:"pending,omitempty"`
}
type fieldChange struct {
	Field string `json:"field"`
	Old   string `json:"old"`
	New   string `json:"new"`
}
type flow struct {
	Policy  string `json:"policy"`
	From    string `json:"from"`
	To      string `json:"to"`
	Allowed bool   `json:"allowed"`
	Basis   string `json:"basis"`
}

// batch is what goes into one request.
type batch struct {
	urls []string
	docs []manifest.Document
}

// send takes each document to the zone it belongs to. Documents of several zones cannot be one transaction, so
// all are judged by a dry run before the first is written.
func send(ctx context.Context, c *client, docs []manifest.Document, dry bool, how sending) (*applied, error) {
	var common []manifest.Document
	var names []string
	byZone := map[string][]manifest.Document{}
	for _, d := range docs {
		if !d.Kind.Zonal {
			common = append(common, d)
			continue
		}
		z := zoneOf(d.Resource)
		if byZone[z] == nil {
			names = append(names, z)
		}
		byZone[z] = append(byZone[z], d)
	}
	var judged, written []batch
	if len(names) == 0 {
		written = []batch{{c.urls, common}}
	} else {
		zones, err := c.zones(ctx)
		if err != nil {
			return nil, err
		}
		for i, name := range names {
			urls := c.urls // of an unknown zone any node says so
			if at := slices.IndexFunc(zones, func(z zone) bool { return z.name == name }); at >= 0 {
				urls = zones[at].urls
			}
			whole := batch{urls, append(slices.Clone(common), byZone[name]...)}
			judged = append(judged, whole)
			if i > 0 {
				whole.docs = byZone[name] // the catalog's documents are written by then
			}
			written = append(written, whole)
		}
	}
	if !dry {
		if len(written) > 1 {
			if _, err := sendAll(ctx, c, judged, true, how); err != nil {
				return nil, err
			}
		}
		return sendAll(ctx, c, written, false, how)
	}
	if len(judged) == 0 {
		judged = written
	}
	return sendAll(ctx, c, judged, true, how)
}

func zoneOf(r *adminv1.Resource) string {
	if r.GetClosure() != nil {
		return r.GetClosure().GetZone()
	}
	if r.GetDrain() != nil {
		return r.GetDrain().GetZone()
	}
	return r.GetCustomer().GetZone()
}

func sendAll(ctx context.Context, c *client, batches []batch, dry bool, how sending) (*applied, error) {
	out := &applied{Changes: []change{}, Warnings: []string{}, Flows: []flow{}}
	for i, b := range batches {
		req := &adminv1.ApplyRequest{DryRun: dry, RequestId: rand.Text(), Now: how.now, Reason: how.reason}
		if how.soak != 0 {
			req.Soak = durationpb.New(how.soak)
		}
		for _, d := range b.docs {
			req.Resources = append(req.Resources, d.Resource)
		}
		resp, err := ask(ctx, c, b.urls, func(ctx context.Context, n api) (*adminv1.ApplyResponse, error) { return n.Apply(ctx, req) })
		if err != nil {
			if i > 0 && !dry {
				err = fmt.Errorf("the documents of %d other batches are written, these are not: %w", i, err)
			}
			return nil, locate(err, b.docs)
		}
		out.add(resp, i == 0)
	}
	return out, nil
}

func (out *applied) add(resp *adminv1.ApplyResponse, first bool) {
	for _, c := range resp.GetChanges() {
		if kind, _ := manifest.ParseKind(c.GetKind()); !first && !kind.Zonal {
			continue // told before
		}
		out.Changes = append(out.Changes, changesOf([]*adminv1.Change{c})...)
	}
	for _, p := range resp.GetPending() {
		if !slices.ContainsFunc(out.Pending, func(x waiting) bool { return x.ID == p.GetId() }) {
			out.Pending = append(out.Pending, waitingOf(p))
		}
	}
	if out.Rollout = or(resp.GetRollout(), out.Rollout); first {
		out.AtOnce = resp.GetAtOnce()
	}
	for _, w := range resp.GetWarnings() {
		if !slices.Contains(out.Warnings, w) {
			out.Warnings = append(out.Warnings, w)
		}
	}
	for _, f := range resp.GetFlows() {
		if one := (flow{f.GetPolicy(), f.GetFrom(), f.GetTo(), f.GetAllowed(), f.GetBasis()}); !slices.Contains(out.Flows, one) {
			out.Flows = append(out.Flows, one)
		}
	}
}

var resourcePath = regexp.MustCompile(`^resources\[(\d+)\]\.?(.*)$`)

// locate puts the file and line of the offending field before a server's sentence.
func locate(err error, docs []manifest.Document) error {
	f, ok := fault.As(err)
	if !ok {
		return err
	}
	m := resourcePath.FindStringSubmatch(f.Field)
	if m == nil {
		return err
	}
	i, convErr := strconv.Atoi(m[1])
	if convErr != nil || i >= len(docs) {
		return err
	}
	where := docs[i].Position(m[2])
	if m[2] != "" {
		where += ": " + m[2]
	}
	if f == err { // that says it already
		plain := *f
		plain.Message = strings.TrimPrefix(f.Message, f.Field+": ")
		err = &plain
	}
	return fmt.Errorf("%s: %w", where, err)
}

func (a *app) printApply(r *applied, dry bool) error {
	for _, w := range r.Warnings {
		fmt.Fprintln(a.err, "warning: "+legible(w))
	}
	return a.print(r, func(w io.Writer) {
		for _, c := range r.Changes {
			action := c.Action
			if dry && action != "unchanged" {
				action = "would be " + action
			}
			if c.Pending != "" && c.Action != "proposed" {
				action += ", but for what it opens"
			}
			fmt.Fprintf(w, "%s %s %s\n", c.Kind, c.Name, action)
			if c.Action != "updated" {
				continue
			}
			for _, f := range c.Fields {
				fmt.Fprintf(w, "  %s: %s -> %s\n", f.Field, or(f.Old, "(unset)"), or(f.New, "(unset)"))
			}
		}
		for _, f := range r.Flows {
			verb := "closes"
			if f.Allowed {
				verb = "opens"
			}
			fmt.Fprintf(w, "%s %s -> %s in policy %s, on %s\n", verb, f.From, f.To, f.Policy, f.Basis)
		}
		for _, p := range r.Pending {
			p.tell(w, dry)
		}
		for _, what := range r.AtOnce {
			fmt.Fprintf(w, "at once: %s\n", legible(what))
		}
		if r.Rollout != "" {
			fmt.Fprintf(w, "goes out by roll-out %s: bailiwick rollout watch %s\n", r.Rollout, r.Rollout)
		}
	})
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
