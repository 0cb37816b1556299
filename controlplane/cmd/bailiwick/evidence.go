package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/evidence"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

func (a *app) evidenceCommand() *cobra.Command {
	return group("evidence", "Take a zone's evidence away, and check it without the zone", a.evidenceExportCommand(), a.evidenceVerifyCommand(),
		a.evidenceRowsCommand(), a.evidenceCheckCommand())
}

func (a *app) complianceCommand() *cobra.Command {
	return group("compliance", "Report on what crossed a zone's borders", a.complianceReportCommand())
}

// span are the flags of an interval in one zone.
type span struct{ zone, from, to string }

func (s *span) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.zone, "zone", "", "the zone (required)")
	c.Flags().StringVar(&s.from, "from", "24h", "beginning: a time, or how long ago")
	c.Flags().StringVar(&s.to, "to", "0s", "end: a time, or how long ago")
}

// interval reads the flags.
func (s *span) interval() (from, to *timestamppb.Timestamp, err error) {
	if s.zone == "" {
		return nil, nil, misuse("--zone is required: evidence is a zone's own")
	}
	now := time.Now()
	if from, err = instant(s.from, now); err != nil {
		return nil, nil, err
	}
	to, err = instant(s.to, now)
	return from, to, err
}

// chunked is a stream of an export's pieces.
type chunked interface {
	Receive() bool
	Err() error
	Close() error
}

// drain writes a stream's pieces to a draft, and gives a stream up that is silent for too long.
func drain[T chunked](cancel context.CancelFunc, stream T, take func(T) error) error {
	defer stream.Close()
	stalled := time.AfterFunc(exportStall, cancel)
	defer stalled.Stop()
	for stream.Receive() {
		stalled.Reset(exportStall)
		if err := take(stream); err != nil {
			return err
		}
	}
	return stream.Err()
}

// bundle fetches one from a node of the zone into a draft.
func (a *app) bundle(ctx context.Context, s span, to draft) error {
	from, until, err := s.interval()
	if err != nil {
		return err
	}
	a.timeout = max(a.timeout, exportTimeout)
	return a.command(ctx, func(ctx context.Context, c *client) error {
		c.try = exportTimeout
		z, err := c.in(ctx, s.zone)
		if err != nil {
			return err
		}
		_, err = ask(ctx, c, z.urls, func(ctx context.Context, n api) (none struct{}, err error) {
			return none, exportBundle(ctx, n, &adminv1.ExportEvidenceRequest{From: from, To: until}, to)
		})
		return err
	})
}

// exportBundle begins the draft anew, since another node may have begun to answer before; an answer that breaks off is gone
// on with where it did, as long as each attempt brings something.
func exportBundle(ctx context.Context, n api, req *adminv1.ExportEvidenceRequest, to draft) error {
	if _, err := to.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := to.Truncate(0); err != nil {
		return err
	}
	for {
		began := req.Offset
		attempt, cancel := context.WithCancel(ctx)
		stream, err := n.ExportEvidence(attempt, req)
		if err == nil {
			err = drain(cancel, stream, func(stream *connect.ServerStreamForClient[adminv1.ExportEvidenceResponse]) error {
				m := stream.Msg()
				if req.Resume == nil {
					req.Resume = m.GetExport()
				}
				req.Offset += int64(len(m.GetChunk()))
				_, err := to.Write(m.GetChunk())
				return err
			})
		}
		cancel()
		if err == nil || ctx.Err() != nil || req.Offset == began || req.Resume == nil {
			return err
		}
	}
}

func (a *app) evidenceExportCommand() *cobra.Command {
	var s span
	var file string
	c := &cobra.Command{Use: "export --zone ZONE -f FILE", Short: "Write a zone's decisions, with their proofs, as one signed file", Args: cobra.NoArgs,
		Long: `Write a zone's decisions as one signed file: rules adopted, closures, grants with the relays under them, tightenings
and when they were in force, changes by operators, and the signed heads that prove that nothing is missing or changed.
It begins earlier than --from, so that everything in it can be derived, and may be of any size: an answer that breaks off
is gone on with. Check it anywhere with: bailiwick evidence verify FILE`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.toFile(file, func(d draft) error { return a.bundle(cmd.Context(), s, d) })
		}}
	s.flags(c)
	c.Flags().StringVarP(&file, "file", "f", "", "write to this file, readable by you alone (required)")
	return c
}

// toFile gathers an export beside its file, which gets its name when it is whole.
func (a *app) toFile(file string, fetch func(draft) error) error {
	if file == "" {
		return misuse("-f is required: the file to write")
	}
	d, err := newDraft(file)
	if err != nil {
		return err
	}
	defer d.discard()
	if err := fetch(d); err != nil {
		return err
	}
	return d.keep(file)
}

func (a *app) evidenceRowsCommand() *cobra.Command {
	var s span
	var file, region string
	c := &cobra.Command{Use: "rows --zone ZONE --region REGION -f FILE", Short: "Fetch the rows of a region's relays from its edges", Args: cobra.NoArgs,
		Long: `Fetch the rows of relays that left a region: when, which request, under which grant. They rest with the region's edges, which
keep them for 90 days or 256 MiB, and are handed out within their zone alone; digests of them are in the zone's log. Hold
them against a bundle with: bailiwick evidence verify BUNDLE --rows FILE`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, to, err := s.interval()
			if err != nil {
				return err
			}
			if region == "" {
				return misuse("--region is required: the region that the relays left")
			}
			a.timeout = max(a.timeout, exportTimeout)
			return a.toFile(file, func(d draft) error {
				return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
					c.try = exportTimeout
					z, err := c.in(ctx, s.zone)
					if err != nil {
						return err
					}
					_, err = ask(ctx, c, z.urls, func(ctx context.Context, n api) (none struct{}, err error) {
						return none, exportRows(ctx, n, &adminv1.ExportRelayRowsRequest{Region: region, From: from, To: to}, d)
					})
					return err
				})
			})
		}}
	s.flags(c)
	c.Flags().StringVar(&region, "region", "", "the region that the relays left (required)")
	c.Flags().StringVarP(&file, "file", "f", "", "write to this file, readable by you alone (required)")
	return c
}

func exportRows(ctx context.Context, n api, req *adminv1.ExportRelayRowsRequest, to draft) error {
	if _, err := to.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := to.Truncate(0); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := n.ExportRelayRows(ctx, req)
	if err != nil {
		return err
	}
	return drain(cancel, stream, func(stream *connect.ServerStreamForClient[adminv1.ExportRelayRowsResponse]) error {
		_, err := to.Write(stream.Msg().GetChunk())
		return err
	})
}

func (a *app) evidenceCheckCommand() *cobra.Command {
	var zoneName string
	c := &cobra.Command{Use: "check --zone ZONE", Short: "Have every node of a zone read its whole log, and mend what is damaged", Args: cobra.NoArgs,
		Long: `Have every control node of a zone read its whole copy of the zone's log: each record, each hash, each signed head. What is
damaged is fetched from another node. Nodes look at one part a minute by themselves; this looks at all of it now.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if zoneName == "" {
				return misuse("--zone is required: evidence is a zone's own")
			}
			a.timeout = max(a.timeout, exportTimeout)
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				c.try = exportTimeout
				z, err := c.in(ctx, zoneName)
				if err != nil {
					return err
				}
				var all []*adminv1.CheckEvidenceResponse
				for _, url := range z.urls { // each node for itself
					r, err := ask(ctx, c, []string{url}, func(ctx context.Context, n api) (*adminv1.CheckEvidenceResponse, error) {
						return n.CheckEvidence(ctx, &adminv1.CheckEvidenceRequest{})
					})
					if err != nil && fault.KindOf(err) != fault.Unavailable {
						return err
					}
					if err != nil { // the others are worth a look all the same
						r = &adminv1.CheckEvidenceResponse{Node: url, Damaged: []string{"not checked: " + err.Error()}}
					}
					if len(r.GetDamaged()) > 0 {
						a.exit = exitFailure
					}
					all = append(all, r)
				}
				return a.print(all, func(w io.Writer) {
					for _, r := range all {
						if r.GetRecords() > 0 {
							fmt.Fprintf(w, "%s  records %d to %d, %d heads fit\n", r.GetNode(), r.GetFirst(), r.GetFirst()+r.GetRecords()-1, r.GetHeads())
						} else {
							fmt.Fprintln(w, r.GetNode())
						}
						for _, what := range r.GetMended() {
							fmt.Fprintf(w, "  mended   %s\n", what)
						}
						for _, what := range r.GetDamaged() {
							fmt.Fprintf(w, "  DAMAGED  %s\n", what)
						}
					}
				})
			})
		}}
	c.Flags().StringVar(&zoneName, "zone", "", "the zone (required)")
	return c
}

// trust reads whom the auditor trusts.
func (a *app) trust(zone, keyText string, held []string) (evidence.Trust, error) {
	t := evidence.Trust{Zone: zone}
	if keyText != "" {
		key, err := base64.StdEncoding.DecodeString(keyText)
		if err != nil || len(key) != ed25519.PublicKeySize {
			return t, misuse("--key: want the zone's public key, 32 bytes in base64")
		}
		t.Key = key
	}
	if file := a.setting(a.caFile, "BAILIWICK_CA_FILE"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return t, fmt.Errorf("read CA file: %w", err)
		}
		t.Roots = x509.NewCertPool()
		if !t.Roots.AppendCertsFromPEM(pem) {
			return t, fmt.Errorf("read CA file %s: it holds no certificate", filepath.Base(file))
		}
	}
	if t.Key == nil && t.Roots == nil {
		return t, misuse("whom do you trust? Give --key, the zone's public key, or --ca-file, the installation's root: without one a bundle vouches only for itself")
	}
	for _, file := range held {
		note, err := os.ReadFile(file)
		if err != nil {
			return t, fmt.Errorf("read head: %w", err)
		}
		t.Held = append(t.Held, note)
	}
	return t, nil
}

func (a *app) evidenceVerifyCommand() *cobra.Command {
	var zone, key string
	var held, rows []string
	c := &cobra.Command{Use: "verify FILE", Short: "Check a bundle offline: every signature, every proof, every decision", Args: cobra.ExactArgs(1),
		Long: `Check a bundle without any network: that every signature is the zone's, that no record was changed, left out, added or
moved, and that every decision follows from the rules that the zone had adopted by then.

The zone's key is trusted by --key, its public key in base64, or by --ca-file (BAILIWICK_CA_FILE), the installation's
root. --head FILE is a signed head that somebody else kept, an edge or an earlier bundle's auditor: it must be of the same
history. --rows FILE are rows of relays: they must be exactly those whose digests are in the bundle. Exit codes: 0 sound, 1 not sound or not readable, 2 misuse.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			trust, err := a.trust(zone, key, held)
			if err != nil {
				return err
			}
			a.started = true
			for _, file := range rows {
				r, err := readRows(file)
				if err != nil {
					return err
				}
				trust.Rows = append(trust.Rows, r)
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			v, err := evidence.Verify(f, trust)
			if err != nil {
				return err
			}
			if v.Total > 0 {
				a.exit = exitFailure
			}
			return a.print(v, func(w io.Writer) { printVerdict(w, v) })
		}}
	c.Flags().StringVar(&zone, "zone", "", "the zone that the bundle must be of")
	c.Flags().StringVar(&key, "key", "", "the zone's public key, base64: bailiwick get zones -o json shows it as signing_key")
	c.Flags().StringArrayVar(&rows, "rows", nil, "rows of relays, from evidence rows; may be repeated")
	c.Flags().StringArrayVar(&held, "head", nil, "a signed head that was kept elsewhere; may be repeated")
	return c
}

func readRows(file string) (*evidence.Rows, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return evidence.ReadRows(f)
}

func printVerdict(w io.Writer, v *evidence.Verdict) {
	var kinds []string
	for _, k := range sorted(v.Records) {
		kinds = append(kinds, fmt.Sprintf("%s %d", k, v.Records[k]))
	}
	fmt.Fprintf(w, "zone %s, records %d to %d (%s), %d signed heads\n", v.Zone, v.First, v.Size-1, strings.Join(kinds, ", "), v.Heads)
	for _, r := range v.Rows {
		fmt.Fprintf(w, "relays out of %s: %d rows in %d entries as they were logged, %d entries later than the bundle\n", r.Region, r.Rows, r.Entries, r.Untold)
	}
	if v.Total == 0 {
		fmt.Fprintf(w, "sound: the zone's key is trusted by the given %s, nothing is changed, missing or moved, and every decision follows from the adopted rules\n", v.Anchor)
		if v.Held > 0 {
			fmt.Fprintf(w, "%d heads kept elsewhere are of the same history\n", v.Held)
		}
		return
	}
	fmt.Fprintf(w, "NOT SOUND: %d findings\n", v.Total)
	for _, f := range v.Findings {
		fmt.Fprintf(w, "  line %d, record %d: %s\n", f.Line, f.Record, f.What)
	}
	if more := v.Total - int64(len(v.Findings)); more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}
}

func (a *app) complianceReportCommand() *cobra.Command {
	var s span
	var file, key, bundle string
	c := &cobra.Command{Use: "report --zone ZONE", Short: "Sum up pairs, legal bases, decisions, relays and refusals of an interval", Args: cobra.NoArgs,
		Long: `Sum up what a zone permitted, decided, relayed and refused: JSON with -o json, one self-contained page with -o html. It is
made of a bundle, which is verified first; --bundle takes one from a file instead of asking the zone.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			trust, err := a.trust(s.zone, key, nil)
			if err != nil {
				return err
			}
			var in io.ReadSeeker
			if bundle != "" {
				a.started = true
				f, err := os.Open(bundle)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			} else {
				d, err := newDraft("")
				if err != nil {
					return err
				}
				defer d.discard()
				if err := a.bundle(cmd.Context(), s, d); err != nil {
					return err
				}
				in = d
			}
			if _, err := in.Seek(0, io.SeekStart); err != nil {
				return err
			}
			r, err := evidence.ReportOn(in, trust)
			if err != nil {
				return err
			}
			if r.Verdict.Total > 0 {
				a.exit = exitFailure
			}
			if a.output != "html" {
				return a.print(r, func(w io.Writer) { printReport(w, r) })
			}
			if file == "" {
				return r.HTML(a.out)
			}
			var page bytes.Buffer
			if err := r.HTML(&page); err != nil {
				return err
			}
			return writePrivate(file, page.Bytes())
		}}
	s.flags(c)
	c.Flags().StringVarP(&file, "file", "f", "", "write the page to this file")
	c.Flags().StringVar(&key, "key", "", "the zone's public key, base64; otherwise --ca-file is trusted")
	c.Flags().StringVar(&bundle, "bundle", "", "report on this file")
	return c
}

func printReport(w io.Writer, r *evidence.Report) {
	b := bufio.NewWriter(w)
	defer b.Flush()
	printVerdict(b, r.Verdict)
	for _, p := range r.Pairs {
		fmt.Fprintf(b, "permitted  %s to %s, policy %s, basis %s, %d grants", p.From, p.To, p.Policy, p.Basis, p.Grants)
		if p.ReviewBy != "" {
			fmt.Fprintf(b, ", review by %s%s", p.ReviewBy, map[bool]string{true: " (due)"}[p.ReviewDue])
		}
		fmt.Fprintln(b)
	}
	for _, c := range r.Closures {
		fmt.Fprintf(b, "closure    %s: %s, since %s%s\n", c.Name, c.What, c.ClosedAt.Format(time.RFC3339), map[bool]string{true: ", lifted"}[c.OpenedAt != nil])
	}
	for _, t := range r.Tightening {
		fmt.Fprintf(b, "in force   %s, %d ms after it was committed, by %s\n", t.Pair, t.After.Milliseconds(), t.By)
	}
	for _, x := range r.Relays {
		fmt.Fprintf(b, "relayed    %d from %s to %s by edge %s\n", x.Count, x.From, x.To, x.Edge)
	}
	for _, x := range r.Refusals {
		fmt.Fprintf(b, "refused    %d from %s to %s by rule %s, one of them %s\n", x.Count, x.From, x.To, x.Rule, cmp.Or(x.Sample, "not named"))
	}
	for _, x := range r.Regions {
		fmt.Fprintf(b, "region     %s is %s, up %s of the time it was seen, %d outages\n", x.Region, x.State, x.Uptime(), x.Outages)
	}
	for _, x := range r.Sentinel {
		fmt.Fprintf(b, "sentinel   %s stopped %d, and %d just after a change of rules\n", x.Edge, x.Violations, x.Late)
	}
	for _, x := range r.Reads {
		fmt.Fprintf(b, "read       %s by %s: %d records, %d customers, %d of every customer, %d without a reason\n", legible(x.Operator), x.Procedure, x.Records, x.Customers, x.Everyone, x.NoReason)
	}
}
