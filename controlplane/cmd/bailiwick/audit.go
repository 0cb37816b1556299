package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/model"
)

// audited is one thing that somebody did.
type audited struct {
	At      string   `json:"at"`
	Who     string   `json:"who"` // an operator of the zone by name, of another zone by its pseudonym
	Call    string   `json:"call"`
	Request string   `json:"request_sha256"`
	What    []string `json:"what"`
	Record  int64    `json:"record"`            // number in the zone's log
	Catalog string   `json:"catalog,omitempty"` // position, of a write to the catalog
}

func (a *app) auditCommand() *cobra.Command {
	return group("audit", "Who changed what, in a zone and in the catalog", a.auditListCommand(), a.auditVerifyCommand())
}

func (a *app) auditListCommand() *cobra.Command {
	var s span
	var key, bundle string
	c := &cobra.Command{Use: "list --zone ZONE", Short: "List what operators did, from the zone's Merkle log", Args: cobra.NoArgs,
		Long: `List what operators did: in the zone, whose data they were shown (customers are digests under the zone's key), and in the
catalog as the zone's log tells it, drains included. It is made of a
bundle, which is verified first; --bundle takes one from a file instead of asking the zone. Operators of other zones are
shown under a pseudonym that their zone's own log resolves.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			trust, err := a.trust(s.zone, key, nil)
			if err != nil {
				return err
			}
			in, done, err := a.bundleOr(cmd.Context(), s, bundle)
			if err != nil {
				return err
			}
			defer done()
			out := []audited{}
			v, err := evidence.Read(in, trust, func(n int64, r evidence.Record) { out = append(out, auditOf(n, r)...) })
			if err != nil {
				return err
			}
			if v.Total > 0 {
				a.exit = exitFailure
				fmt.Fprintf(a.err, "warning: the bundle is NOT SOUND: %d findings; bailiwick evidence verify lists them\n", v.Total)
			}
			return a.print(out, func(w io.Writer) {
				var lines [][]string
				for _, x := range out {
					lines = append(lines, []string{x.At, x.Who, x.Call, strings.Join(x.What, "; ")})
				}
				rows(w, "AT WHO CALL WHAT", lines)
			})
		}}
	s.flags(c)
	c.Flags().StringVar(&key, "key", "", "the zone's public key, base64; otherwise --ca-file is trusted")
	c.Flags().StringVar(&bundle, "bundle", "", "list from this file")
	return c
}

func auditOf(n int64, r evidence.Record) (out []audited) {
	if r.Kind == evidence.KindCatalog {
		seen, err := model.Decode[model.CatalogSeen](model.KeyCatalogSeen, r.Value)
		if err != nil {
			return nil // verification says so
		}
		if seen.Gap {
			out = append(out, audited{At: r.At.Format(time.RFC3339), What: []string{fmt.Sprintf("the catalog's history up to %d.%d is not known here", seen.Epoch, seen.Through)}, Record: n})
		}
		for _, w := range seen.Writes {
			x := audited{At: w.At.Format(time.RFC3339), Who: or(w.Name, w.By), Call: w.Call, Request: w.RequestSHA256, Record: n, Catalog: fmt.Sprintf("%d.%d", seen.Epoch, w.Index)}
			for _, c := range w.Changes {
				x.What = append(x.What, changed(c))
			}
			if w.By != "" { // what control nodes write by themselves nobody did
				out = append(out, x)
			}
		}
		return out
	}
	if r.By == nil {
		return nil
	}
	x := audited{At: r.At.Format(time.RFC3339), Who: r.By.Operator, Call: r.By.Call, Request: r.By.RequestSHA256, Record: n, What: []string{strings.TrimSpace(r.Kind + " " + r.Key)}}
	if r.Kind == evidence.KindProposal {
		if p, err := model.Decode[model.Proposal](r.Key, r.Value); err == nil {
			x.What[0] += " " + p.Status
			for _, d := range p.Docs {
				x.What = append(x.What, d.Kind+" "+d.Name)
			}
		}
	}
	if r.Kind == evidence.KindRead {
		if v, err := model.Decode[model.Read](model.KeyRead, r.Value); err == nil {
			x.What = []string{"read of every customer by " + v.Procedure}
			if v.Customer != "" {
				x.What[0] = fmt.Sprintf("read of customer %.12s by %s", v.Customer, v.Procedure)
			}
			if v.Reason != "" {
				x.What = append(x.What, "because: "+v.Reason)
			}
		}
	}
	return append(out, x)
}

func changed(c model.CatalogChange) string {
	verb := "changed"
	switch {
	case c.Before == "":
		verb = "created"
	case c.After == "":
		verb = "deleted"
	}
	text := fmt.Sprintf("%s %s %s", c.Kind, c.Name, verb)
	switch {
	case c.Drain == nil:
	case *c.Drain == "":
		text += ", no longer drained"
	default:
		text += ", drained: " + *c.Drain
	}
	return text
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var key string
	c := &cobra.Command{Use: "verify FILE...", Short: "Check bundles offline, and that zones tell the same of the catalog", Args: cobra.MinimumNArgs(1),
		Long: `Check bundles like evidence verify does, each of a zone; and that what two of them tell of the catalog, transaction by
transaction, is the same: no zone can hide or change a write that another has logged. What a zone says that it could not
log, a gap, is listed. Exit codes: 0 sound, 1 not.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			trust, err := a.trust("", key, nil)
			if err != nil {
				return err
			}
			a.started = true
			out := struct {
				Verdicts    []*evidence.Verdict `json:"verdicts"`
				Compared    int                 `json:"catalog_transactions_compared"`
				Differences []string            `json:"differences"`
				Gaps        []string            `json:"gaps"`
			}{Differences: []string{}, Gaps: []string{}}
			var agree evidence.Agree
			for _, file := range args {
				v, err := auditFile(file, trust, &agree)
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				if out.Verdicts = append(out.Verdicts, v); v.Total > 0 {
					a.exit = exitFailure
				}
			}
			out.Compared, out.Gaps = agree.Compared, append(out.Gaps, agree.Gaps...)
			if out.Differences = append(out.Differences, agree.Differences...); len(out.Differences) > 0 {
				a.exit = exitFailure
			}
			return a.print(out, func(w io.Writer) {
				for _, v := range out.Verdicts {
					printVerdict(w, v)
				}
				fmt.Fprintf(w, "%d transactions of the catalog are told by two bundles or more, %d of them differently\n", out.Compared, len(out.Differences))
				for _, d := range append(out.Differences, out.Gaps...) {
					fmt.Fprintln(w, "  "+legible(d))
				}
			})
		}}
	c.Flags().StringVar(&key, "key", "", "a zone's public key, base64; otherwise --ca-file is trusted")
	return c
}

func auditFile(file string, trust evidence.Trust, agree *evidence.Agree) (*evidence.Verdict, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var records []evidence.Record // a bundle's zone is in its verdict
	v, err := evidence.Read(f, trust, func(_ int64, r evidence.Record) {
		if r.Kind == evidence.KindCatalog {
			records = append(records, r)
		}
	})
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if err := agree.Add(file, v.Zone, r); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// bundleOr opens a bundle of a file, or fetches one; done lets go of it.
func (a *app) bundleOr(ctx context.Context, s span, file string) (in io.Reader, done func(), err error) {
	if file != "" {
		a.started = true
		f, err := os.Open(file)
		if err != nil {
			return nil, nil, err
		}
		return f, func() { _ = f.Close() }, nil
	}
	d, err := newDraft("")
	if err != nil {
		return nil, nil, err
	}
	if err = a.bundle(ctx, s, d); err == nil {
		_, err = d.Seek(0, io.SeekStart)
	}
	if err != nil {
		d.discard()
		return nil, nil, err
	}
	return d, d.discard, nil
}
