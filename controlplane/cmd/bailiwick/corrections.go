package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	yaml "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/correction"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// correctionRow is a row of a correction's file, CSV or YAML, and of what is printed.
type correctionRow struct {
	Cell         string `json:"cell" yaml:"cell"`
	Subscription string `json:"subscription" yaml:"subscription"`
	Plan         string `json:"plan" yaml:"plan"`
	Product      string `json:"product" yaml:"product"`
	API          string `json:"api" yaml:"api"`
	Route        string `json:"route" yaml:"route"`
	ServedRegion string `json:"served_region" yaml:"served_region"`
	Outcome      string `json:"outcome" yaml:"outcome"`
	Requests     int64  `json:"requests" yaml:"requests"`
	Units        int64  `json:"units" yaml:"units"`
}

type correctionReport struct {
	ID        string          `json:"id"`
	Kind      string          `json:"kind"`
	Customer  string          `json:"customer"`
	Reason    string          `json:"reason"`
	By        string          `json:"by"`
	At        string          `json:"at"`
	Node      string          `json:"node,omitempty"`
	Corrects  string          `json:"corrects,omitempty"`
	UndoneBy  string          `json:"undone_by,omitempty"`
	Signature string          `json:"signature,omitempty"`
	Verified  *bool           `json:"verified,omitempty"`
	Rows      []correctionRow `json:"rows"`
}

func reportOf(c *adminv1.Correction) correctionReport {
	out := correctionReport{ID: c.GetId(), Kind: c.GetKind(), Customer: c.GetCustomer(), Reason: c.GetReason(), By: c.GetBy(), At: clock(c.GetAt()), Node: c.GetNode(),
		Corrects: c.GetCorrects(), UndoneBy: c.GetUndoneBy(), Signature: base64.StdEncoding.EncodeToString(c.GetSignature()), Rows: []correctionRow{}}
	for _, r := range c.GetRows() {
		out.Rows = append(out.Rows, correctionRow{clock(r.GetCell()), r.GetSubscription(), r.GetPlan(), r.GetProduct(), r.GetApi(), r.GetRoute(), r.GetServedRegion(),
			r.GetOutcome(), r.GetRequests(), r.GetUnits()})
	}
	return out
}

func (r *correctionRow) proto() (*adminv1.CorrectionRow, error) {
	at, err := instant(r.Cell, time.Now())
	if err != nil {
		return nil, fmt.Errorf("cell: %w", err)
	}
	if at == nil {
		return nil, errors.New("cell: a time is required")
	}
	return &adminv1.CorrectionRow{Cell: at, Subscription: r.Subscription, Plan: r.Plan, Product: r.Product, Api: r.API, Route: r.Route, ServedRegion: r.ServedRegion,
		Outcome: r.Outcome, Requests: r.Requests, Units: r.Units}, nil
}

// readRows reads a file of rows; "-" is standard input, which is CSV.
func (a *app) readRows(name string) ([]*adminv1.CorrectionRow, error) {
	var text []byte
	var err error
	if name == "-" {
		text, err = io.ReadAll(io.LimitReader(a.in, correction.MaxBytes))
	} else {
		text, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, err
	}
	var rows []correctionRow
	if strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml") {
		dec := yaml.NewDecoder(strings.NewReader(string(text)))
		dec.KnownFields(true)
		err = dec.Decode(&rows)
	} else {
		rows, err = csvRows(string(text))
	}
	if err != nil {
		return nil, misuse("%s: %v", name, err)
	}
	if len(rows) == 0 {
		return nil, misuse("%s: it holds no row", name)
	}
	var out []*adminv1.CorrectionRow
	for i := range rows {
		r, err := rows[i].proto()
		if err != nil {
			return nil, misuse("%s: row %d: %v", name, i+1, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// csvRows reads CSV whose first line names the columns, in any order.
func csvRows(text string) ([]correctionRow, error) {
	r := csv.NewReader(strings.NewReader(text))
	heading, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("the first line names the columns: %w", err)
	}
	var out []correctionRow
	for {
		record, err := r.Read()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		var row correctionRow
		texts := map[string]*string{"cell": &row.Cell, "subscription": &row.Subscription, "plan": &row.Plan, "product": &row.Product, "api": &row.API, "route": &row.Route,
			"served_region": &row.ServedRegion, "outcome": &row.Outcome}
		numbers := map[string]*int64{"requests": &row.Requests, "units": &row.Units}
		for i, name := range heading {
			name = strings.TrimSpace(name)
			value := strings.TrimSpace(record[i])
			switch {
			case texts[name] != nil:
				*texts[name] = value
			case numbers[name] == nil:
				return nil, fmt.Errorf("column %q is none of cell, subscription, plan, product, api, route, served_region, outcome, requests, units", name)
			case value != "":
				if *numbers[name], err = strconv.ParseInt(value, 10, 64); err != nil {
					line, _ := r.FieldPos(i)
					return nil, fmt.Errorf("line %d: %s: %q is not a whole number", line, name, value)
				}
			}
		}
		out = append(out, row)
	}
}

func (a *app) correctCommand() *cobra.Command {
	req := &adminv1.CorrectRequest{}
	var file, zoneName string
	c := &cobra.Command{Use: "correct --customer NAME -f ROWS --reason TEXT", Short: "Book signed quantities on a customer's usage", Args: cobra.NoArgs,
		Long: `Book signed quantities on a customer's usage: a correction, or with --producer what a job imports. Nothing that was
counted is rewritten: a correction is a row beside it, signed with the zone's key, and can be undone once.

ROWS is a YAML list (.yaml) or CSV whose first line names the columns: cell (any time in it), subscription, plan,
product, api, route, served_region, outcome, requests, units. What can only be one thing may be left out.
The same --producer and --request-id have their effect once, however often they are sent.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Rows, err = a.readRows(file); err != nil {
				return err
			}
			if req.Producer != "" && req.RequestId == "" {
				return misuse("--producer needs --request-id: without one, running the import again would book it twice")
			}
			if req.RequestId == "" {
				req.RequestId = rand.Text()
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.CorrectResponse, error) { return n.Correct(ctx, req) })
				if err != nil {
					return err
				}
				return a.printBooking(resp, req.DryRun)
			})
		}}
	c.Flags().StringVar(&req.Customer, "customer", "", "whose usage")
	c.Flags().StringVarP(&file, "file", "f", "", "rows: .yaml, or CSV; - for standard input")
	c.Flags().StringVar(&req.Reason, "reason", "", "why; kept for good")
	c.Flags().BoolVar(&req.DryRun, "dry-run", false, "show the totals before and after, and change nothing")
	c.Flags().StringVar(&req.Producer, "producer", "", "name of the job that imports; default: the operator, and a correction")
	c.Flags().StringVar(&req.RequestId, "request-id", "", "names the correction for ever; default: a new one")
	c.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	for _, name := range []string{"customer", "file", "reason"} {
		c.MarkFlagRequired(name)
	}
	return c
}

func (a *app) undoCommand() *cobra.Command {
	req := &adminv1.UndoCorrectionRequest{}
	var zoneName string
	c := &cobra.Command{Use: "undo ID --reason TEXT", Short: "Book the exact opposite of a correction", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Id = args[0]
			if req.RequestId == "" {
				req.RequestId = rand.Text()
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.CorrectResponse, error) { return n.UndoCorrection(ctx, req) })
				if err != nil {
					return err
				}
				return a.printBooking(resp, req.DryRun)
			})
		}}
	c.Flags().StringVar(&req.Reason, "reason", "", "why; kept for good")
	c.Flags().BoolVar(&req.DryRun, "dry-run", false, "show the totals before and after, and change nothing")
	c.Flags().StringVar(&req.RequestId, "request-id", "", "names the undo for ever; default: a new one")
	c.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	c.MarkFlagRequired("reason")
	return c
}

func (a *app) printBooking(resp *adminv1.CorrectResponse, dry bool) error {
	out := struct {
		Correction correctionReport `json:"correction"`
		Before     usageTotal       `json:"before"`
		After      usageTotal       `json:"after"`
		Repeated   bool             `json:"repeated"`
		DryRun     bool             `json:"dry_run"`
	}{reportOf(resp.GetCorrection()), totalOf(resp.GetBefore()), totalOf(resp.GetAfter()), resp.GetRepeated(), dry}
	return a.print(out, func(w io.Writer) {
		switch {
		case dry:
			fmt.Fprintln(w, "dry run: nothing is booked")
		case out.Repeated:
			fmt.Fprintf(w, "correction %s was booked before; nothing has changed\n", out.Correction.ID)
		default:
			fmt.Fprintf(w, "booked correction %s\n", out.Correction.ID)
		}
		fmt.Fprint(w, "before: ")
		printTotal(w, out.Before)
		fmt.Fprint(w, "after:  ")
		printTotal(w, out.After)
	})
}

func (a *app) correctionsCommand() *cobra.Command {
	var customer, zoneName string
	var verify bool
	c := &cobra.Command{Use: "corrections --customer NAME", Short: "List what was booked on a customer's usage by hand", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.ListCorrectionsResponse, error) {
					return n.ListCorrections(ctx, &adminv1.ListCorrectionsRequest{Customer: customer})
				})
				if err != nil {
					return err
				}
				var key ed25519.PublicKey
				if verify {
					if key, err = zoneKey(ctx, c, or(zoneName, resp.GetZone())); err != nil {
						return err
					}
				}
				out := []correctionReport{}
				bad := 0
				for _, b := range resp.GetCorrections() {
					r := reportOf(b)
					if verify {
						ok := verified(b, key)
						if r.Verified = &ok; !ok {
							bad++
						}
					}
					out = append(out, r)
				}
				if err := a.printCorrections(out, verify); err != nil {
					return err
				}
				if bad > 0 {
					return codedError{fmt.Errorf("%d corrections carry no valid signature of zone %s", bad, or(zoneName, resp.GetZone())), exitFailure}
				}
				return nil
			})
		}}
	c.Flags().StringVar(&customer, "customer", "", "whose")
	c.Flags().BoolVar(&verify, "verify", false, "check each signature against the key of the customer's zone; exit 1 if one is false")
	c.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	c.MarkFlagRequired("customer")
	return c
}

func (a *app) printCorrections(list []correctionReport, verify bool) error {
	return a.print(list, func(w io.Writer) {
		heading := "ID KIND AT BY ROWS REQUESTS UNITS CORRECTS UNDONE-BY REASON"
		if verify {
			heading += " SIGNATURE"
		}
		var lines [][]string
		for _, c := range list {
			var requests, units int64
			for _, r := range c.Rows {
				requests += r.Requests
				units += r.Units
			}
			line := []string{c.ID, c.Kind, c.At, c.By, strconv.Itoa(len(c.Rows)), number(requests), number(units), c.Corrects, c.UndoneBy, c.Reason}
			if verify {
				word := "FALSE"
				if *c.Verified {
					word = "good"
				}
				line = append(line, word)
			}
			lines = append(lines, line)
		}
		rows(w, heading, lines)
	})
}

// zoneKey reads a zone's public key from the catalog: of no other zone, since none may book on this one's customers.
func zoneKey(ctx context.Context, c *client, name string) (ed25519.PublicKey, error) {
	resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.GetResponse, error) {
		return n.Get(ctx, &adminv1.GetRequest{Kind: "zones", Name: name})
	})
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(resp.GetResource().GetZone().GetSigningKey())
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, fault.New(fault.NotFound, "NO_SIGNING_KEY", "zone %s has published no signing key", name)
	}
	return key, nil
}

func verified(b *adminv1.Correction, key ed25519.PublicKey) bool {
	c := correction.Correction{Producer: b.GetProducer(), RequestID: b.GetRequestId(), Kind: b.GetKind(), Customer: b.GetCustomer(), Reason: b.GetReason(), By: b.GetBy(),
		Node: b.GetNode(), AtMS: millis(b.GetAt()), Corrects: b.GetCorrects(), Signature: b.GetSignature()}
	for _, r := range b.GetRows() {
		c.Rows = append(c.Rows, correction.Row{Start: r.GetCell().GetSeconds(), Subscription: r.GetSubscription(), Plan: r.GetPlan(), Product: r.GetProduct(), API: r.GetApi(),
			Route: r.GetRoute(), ServedRegion: r.GetServedRegion(), Outcome: r.GetOutcome(), Requests: r.GetRequests(), Units: r.GetUnits()})
	}
	return c.Verify(key)
}

func millis(t *timestamppb.Timestamp) int64 { return t.AsTime().UnixMilli() }
