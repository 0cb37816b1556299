package main

import (
	"bufio"
	"bytes"
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

	"github.com/spf13/cobra"

	"bailiwick/controlplane/internal/evidence"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

func (a *app) evidenceCommand() *cobra.Command {
	return group("evidence", "Take a zone's evidence away, and check it without the zone", a.evidenceExportCommand(), a.evidenceVerifyCommand())
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

// bundle fetches one from a node of the zone.
func (a *app) bundle(ctx context.Context, s span) ([]byte, error) {
	if s.zone == "" {
		return nil, misuse("--zone is required: evidence is a zone's own")
	}
	now := time.Now()
	from, err := instant(s.from, now)
	if err != nil {
		return nil, err
	}
	to, err := instant(s.to, now)
	if err != nil {
		return nil, err
	}
	var file bytes.Buffer
	a.timeout = max(a.timeout, exportTimeout)
	err = a.command(ctx, func(ctx context.Context, c *client) error {
		c.try = exportTimeout
		z, err := c.in(ctx, s.zone)
		if err != nil {
			return err
		}
		_, err = ask(ctx, c, z.urls, func(ctx context.Context, n api) (struct{}, error) {
			file.Reset() // the node before this one broke off
			stream, err := n.ExportEvidence(ctx, &adminv1.ExportEvidenceRequest{From: from, To: to})
			if err != nil {
				return struct{}{}, err
			}
			defer stream.Close()
			for stream.Receive() {
				file.Write(stream.Msg().GetChunk())
			}
			return struct{}{}, stream.Err()
		})
		return err
	})
	return file.Bytes(), err
}

func (a *app) evidenceExportCommand() *cobra.Command {
	var s span
	var file string
	c := &cobra.Command{Use: "export --zone ZONE -f FILE", Short: "Write a zone's decisions, with their proofs, as one signed file", Args: cobra.NoArgs,
		Long: `Write a zone's decisions as one signed file: rules adopted, closures, grants with the relays under them, tightenings
and when they were in force, changes by operators, and the signed heads that prove that nothing is missing or changed.
It begins earlier than --from, so that everything in it can be derived. Check it anywhere with: bailiwick evidence verify FILE`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return misuse("-f is required: the file to write")
			}
			data, err := a.bundle(cmd.Context(), s)
			if err != nil {
				return err
			}
			return writePrivate(file, data)
		}}
	s.flags(c)
	c.Flags().StringVarP(&file, "file", "f", "", "write to this file, readable by you alone (required)")
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
	var held []string
	c := &cobra.Command{Use: "verify FILE", Short: "Check a bundle offline: every signature, every proof, every decision", Args: cobra.ExactArgs(1),
		Long: `Check a bundle without any network: that every signature is the zone's, that no record was changed, left out, added or
moved, and that every decision follows from the rules that the zone had adopted by then.

The zone's key is trusted by --key, its public key in base64, or by --ca-file (BAILIWICK_CA_FILE), the installation's
root. --head FILE is a signed head that somebody else kept, an edge or an earlier bundle's auditor: it must be of the same
history. Exit codes: 0 sound, 1 not sound or not readable, 2 misuse.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			trust, err := a.trust(zone, key, held)
			if err != nil {
				return err
			}
			a.started = true
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
	c.Flags().StringArrayVar(&held, "head", nil, "a signed head that was kept elsewhere; may be repeated")
	return c
}

func printVerdict(w io.Writer, v *evidence.Verdict) {
	var kinds []string
	for _, k := range sorted(v.Records) {
		kinds = append(kinds, fmt.Sprintf("%s %d", k, v.Records[k]))
	}
	fmt.Fprintf(w, "zone %s, records %d to %d (%s), %d signed heads\n", v.Zone, v.First, v.Size-1, strings.Join(kinds, ", "), v.Heads)
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
			var data []byte
			if bundle != "" {
				a.started = true
				data, err = os.ReadFile(bundle)
			} else {
				data, err = a.bundle(cmd.Context(), s)
			}
			if err != nil {
				return err
			}
			r, err := evidence.ReportOn(bytes.NewReader(data), trust)
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
		fmt.Fprintf(b, "refused    %d from %s to %s by rule %s\n", x.Count, x.From, x.To, x.Rule)
	}
	for _, x := range r.Regions {
		fmt.Fprintf(b, "heard      %s in %d of %d minutes (%s)\n", x.Region, x.Heard, x.Minutes, x.Uptime())
	}
}
