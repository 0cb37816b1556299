package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

type revision struct {
	Revision uint64   `json:"revision"`
	At       string   `json:"at"`
	By       string   `json:"by"`
	Call     string   `json:"call"`
	Changes  []change `json:"changes"`
	Lost     bool     `json:"lost,omitempty"`
}

type past struct {
	Revisions []revision `json:"revisions"`
	Oldest    uint64     `json:"oldest"`
}

func (a *app) historyCommand() *cobra.Command {
	var limit int32
	c := &cobra.Command{Use: "history [KIND [NAME]]", Short: "List the latest changes of the catalog, newest first", Args: cobra.MaximumNArgs(2),
		Long: `List the latest changes of the catalog, newest first. The newest 200 are kept, fewer if they hold more than 8 MiB;
bailiwick diff --from REVISION shows what changed since one of them, bailiwick rollback REVISION undoes it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				req := &adminv1.HistoryRequest{Limit: limit}
				if len(args) > 0 {
					req.Kind = args[0]
				}
				if len(args) > 1 {
					req.Name = args[1]
				}
				resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.HistoryResponse, error) { return n.History(ctx, req) })
				if err != nil {
					return err
				}
				out := past{Revisions: []revision{}, Oldest: resp.GetOldest()}
				for _, r := range resp.GetRevisions() {
					out.Revisions = append(out.Revisions, revision{r.GetRevision(), clock(r.GetAt()), r.GetBy(), r.GetCall(), changesOf(r.GetChanges()), r.GetLost()})
				}
				return a.printHistory(out)
			})
		}}
	c.Flags().Int32Var(&limit, "limit", 20, "changes to list, at most 1,000")
	return c
}

func changesOf(list []*adminv1.Change) []change {
	out := []change{}
	for _, c := range list {
		one := change{Kind: c.GetKind(), Name: c.GetName(), Action: c.GetAction(), Pending: c.GetPending()}
		for _, f := range c.GetFields() {
			one.Fields = append(one.Fields, fieldChange{f.GetField(), f.GetOld(), f.GetNew()})
		}
		out = append(out, one)
	}
	return out
}

func (a *app) printHistory(p past) error {
	return a.print(p, func(w io.Writer) {
		var lines [][]string
		for _, r := range p.Revisions {
			var what []string
			for i, c := range r.Changes {
				if i == 3 && len(r.Changes) > 4 {
					what = append(what, fmt.Sprintf("and %d more", len(r.Changes)-i))
					break
				}
				what = append(what, c.Kind+" "+c.Name+" "+c.Action)
			}
			if r.Lost {
				what = append(what, "(too large to be undone)")
			}
			lines = append(lines, []string{strconv.FormatUint(r.Revision, 10), r.At, r.By, r.Call, strings.Join(what, ", ")})
		}
		rows(w, "REVISION AT BY CALL CHANGES", lines)
	})
}

func (a *app) rollbackCommand() *cobra.Command {
	var dry, without bool
	var only []string
	c := &cobra.Command{Use: "rollback REVISION", Short: "Apply the catalog's resources as they were at a revision", Args: cobra.ExactArgs(1),
		Long: `Apply the catalog's resources as they were after a revision that bailiwick history lists, under a new revision. What was made
since goes, if nothing rests on it. It is judged, rolled out and, where a policy asks for two operators, approved like any
other change, and it is whole or not at all. Where a resource as it was would be refused today, nothing is rolled back;
with --without-refused all else is, and what is refused stays as it is now and is named. What rests in zones (customers, keys, closures, drains) stays as it is.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := revisionOf(args[0])
			if err != nil {
				return err
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				req := &adminv1.RollbackRequest{Revision: index, DryRun: dry, Only: only, WithoutRefused: without, RequestId: rand.Text()}
				resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.ApplyResponse, error) { return n.Rollback(ctx, req) })
				if err != nil {
					return err
				}
				out := &applied{Changes: []change{}, Warnings: []string{}, Flows: []flow{}}
				out.add(resp, true)
				return a.printApply(out, dry)
			})
		}}
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would change, and which flows it opens and closes")
	c.Flags().BoolVar(&without, "without-refused", false, "leave what would be refused today as it is now, and name it")
	c.Flags().StringArrayVar(&only, "only", nil, "one resource, as \"API orders\"; may be repeated; without it all that changed since")
	return c
}

// revisionOf takes 57, and 1.57 as node list shows it.
func revisionOf(text string) (uint64, error) {
	_, index, ok := strings.Cut(text, ".")
	if !ok {
		index = text
	}
	n, err := strconv.ParseUint(index, 10, 64)
	if err != nil || n == 0 {
		return 0, misuse("%q is no revision: bailiwick history lists them", text)
	}
	return n, nil
}

// compare is diff between two revisions.
func (a *app) compare(ctx context.Context, from, to string) error {
	req := &adminv1.CompareRequest{}
	var err error
	if req.From, err = revisionOf(from); err != nil {
		return err
	}
	if to != "" {
		if req.To, err = revisionOf(to); err != nil {
			return err
		}
	}
	return a.command(ctx, func(ctx context.Context, c *client) error {
		resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.CompareResponse, error) { return n.Compare(ctx, req) })
		if err != nil {
			return err
		}
		if len(resp.GetChanges()) > 0 {
			a.exit = exitUsage
		}
		return a.printApply(&applied{Changes: changesOf(resp.GetChanges()), Warnings: []string{}, Flows: []flow{}}, false)
	})
}
