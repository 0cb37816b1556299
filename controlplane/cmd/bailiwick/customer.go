package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	yaml "go.yaml.in/yaml/v3"

	"bailiwick/controlplane/internal/erasure"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

func (a *app) customerCommand() *cobra.Command {
	return group("customer", "Answer what a person may ask: what is known of me, and forget it",
		a.customerExportCommand(), a.customerEraseCommand(), a.customerVerifyCommand())
}

const (
	eraseTimeout  = 70 * time.Second // for one node, which asks all others
	exportTimeout = time.Hour        // for one node; what a server takes for an export as well
	exportStall   = 3 * time.Minute  // without a byte
)

func (a *app) customerExportCommand() *cobra.Command {
	var file, zoneName string
	c := &cobra.Command{Use: "export NAME", Short: "Write all that the zone holds of a customer as one JSON document", Args: cobra.ExactArgs(1),
		Long: `Write all that the zone holds of a customer as one JSON document: the record, keys without their digests, usage,
corrections, quotas, top-ups, webhooks, alerts and the rows of single requests. What could not be read is listed under
"missing". It may take an hour; the whole of it is gathered on this machine's disk before any of it is written.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.timeout = max(a.timeout, exportTimeout)
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				c.try = exportTimeout
				draft, err := newDraft(file)
				if err != nil {
					return err
				}
				defer draft.discard()
				if _, err = around(ctx, c, zoneName, func(ctx context.Context, n api) (none struct{}, err error) {
					return none, export(ctx, n, args[0], draft)
				}); err != nil {
					return err
				}
				missing, err := missingOf(draft)
				if err != nil {
					return fmt.Errorf("read the export of %s: %w", args[0], err)
				}
				for _, m := range missing {
					fmt.Fprintf(a.err, "warning: missing: %s\n", legible(m))
				}
				if file != "" {
					return draft.keep(file)
				}
				if _, err := draft.Seek(0, io.SeekStart); err != nil {
					return err
				}
				_, err = io.Copy(a.out, draft)
				return err
			})
		}}
	c.Flags().StringVarP(&file, "file", "f", "", "write to this file, readable by you alone; default standard output")
	c.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	return c
}

// draft is where an export is gathered before any of it is shown: half a document is no answer. It may be too large
// for memory, and nobody else can read it.
type draft struct{ *os.File }

func newDraft(file string) (draft, error) {
	dir := "" // the system's
	if file != "" {
		dir = filepath.Dir(file)
	}
	f, err := os.CreateTemp(dir, ".bailiwick-export-*")
	if err != nil {
		return draft{}, fmt.Errorf("gather an export: %w", err)
	}
	return draft{f}, nil
}

func (d draft) discard() {
	d.Close()
	os.Remove(d.Name())
}

// keep gives the draft its name.
func (d draft) keep(file string) error {
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	return os.Rename(d.Name(), file)
}

// export begins the draft anew: another node may have begun to answer before.
func export(ctx context.Context, n api, customer string, to draft) error {
	if _, err := to.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := to.Truncate(0); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silent := time.AfterFunc(exportStall, cancel)
	defer silent.Stop()
	stream, err := n.Export(ctx, &adminv1.ExportRequest{Customer: customer})
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		silent.Reset(exportStall)
		if _, err := to.Write(stream.Msg().GetChunk()); err != nil {
			return err
		}
	}
	return stream.Err()
}

// missingOf reads the member "missing" of an export, and that it is a whole document.
func missingOf(d draft) (missing []string, err error) {
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(d)
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	for dec.More() {
		name, err := dec.Token()
		if err == nil && name == "missing" {
			err = dec.Decode(&missing)
		} else if err == nil {
			err = skip(dec)
		}
		if err != nil {
			return nil, err
		}
	}
	_, err = dec.Token()
	return missing, err
}

// skip passes a value, however large.
func skip(dec *json.Decoder) error {
	for depth := 0; ; {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

func writePrivate(file string, data []byte) error {
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	return nil
}

// signedErasure is the document that customer erase writes and customer verify-erasure reads. Statement is the text that
// was signed, byte by byte.
type signedErasure struct {
	Statement string   `json:"statement" yaml:"statement"`
	Signature string   `json:"signature" yaml:"signature"` // base64
	Pending   []string `json:"pending" yaml:"pending"`
}

// signatureLine parts the statement from its signature in the form for people.
const signatureLine = "\nsignature: "

// readErasure takes each form in which customer erase writes: JSON, YAML and that for people.
func readErasure(data []byte) (doc signedErasure, err error) {
	text := strings.TrimSpace(string(data))
	if i := strings.LastIndex(text, signatureLine); i >= 0 && strings.HasPrefix(text, "{") {
		return signedErasure{Statement: text[:i], Signature: text[i+len(signatureLine):]}, nil
	}
	if err = yaml.Unmarshal(data, &doc); err == nil && (doc.Statement == "" || doc.Signature == "") { // JSON is YAML
		err = errors.New("it holds no statement with a signature")
	}
	return doc, err
}

func (a *app) customerEraseCommand() *cobra.Command {
	var reason, file, zoneName string
	var yes bool
	c := &cobra.Command{Use: "erase NAME --reason TEXT --yes", Short: "Erase a customer and write a signed statement of what went and what stays", Args: cobra.ExactArgs(1),
		Long: `Erase a customer: keys, record, webhooks and alerts go from the zone, rows of single requests from every control
node's disk; the files that held some are written anew. Sums of usage stay, as the statement says and why. It cannot be
undone, and the name is not given again.

While a node or an edge has not confirmed, the statement names it as pending: run the command again, and a newer
statement follows. Check one with: bailiwick customer verify-erasure FILE`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return misuse("erasing customer %s cannot be undone: say --yes", args[0])
			}
			a.timeout = max(a.timeout, eraseTimeout)
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				c.try = eraseTimeout
				id := rand.Text()
				resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.EraseResponse, error) {
					return n.Erase(ctx, &adminv1.EraseRequest{Customer: args[0], Reason: reason, RequestId: id})
				})
				if err != nil {
					return err
				}
				return a.printErasure(resp, file)
			})
		}}
	c.Flags().StringVar(&reason, "reason", "", "why, for the statement")
	c.Flags().BoolVar(&yes, "yes", false, "really")
	c.Flags().StringVarP(&file, "file", "f", "", "write the signed statement to this file as well")
	c.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	_ = c.MarkFlagRequired("reason")
	return c
}

func (a *app) printErasure(resp *adminv1.EraseResponse, file string) error {
	out := signedErasure{Statement: string(resp.GetStatement()), Signature: base64.StdEncoding.EncodeToString(resp.GetSignature()), Pending: append([]string{}, resp.GetPending()...)}
	if file != "" {
		data, err := json.MarshalIndent(out, "", "  ")
		if err != nil {
			return err
		}
		if err := writePrivate(file, append(data, '\n')); err != nil {
			return err
		}
	}
	if len(out.Pending) > 0 {
		fmt.Fprintf(a.err, "warning: not confirmed yet by %s: run the command again\n", strings.Join(out.Pending, ", "))
	}
	return a.print(out, func(w io.Writer) { fmt.Fprintf(w, "%s%s%s\n", out.Statement, signatureLine, out.Signature) })
}

func (a *app) customerVerifyCommand() *cobra.Command {
	var keyText string
	c := &cobra.Command{Use: "verify-erasure FILE", Short: "Check the signature of a statement of erasure", Args: cobra.ExactArgs(1),
		Long: `Check the signature of a statement of erasure, in any form in which customer erase wrote it. With --key, the zone's public key in base64 (bailiwick get zones -o json
shows it as signing_key), nothing is asked over the network.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			doc, err := readErasure(data)
			if err != nil {
				return fmt.Errorf("read %s: it is not what customer erase wrote, on its output or with -f: run that again with -f FILE: %w", filepath.Base(args[0]), err)
			}
			var said erasure.Statement
			if err := json.Unmarshal([]byte(doc.Statement), &said); err != nil {
				return fmt.Errorf("read %s: its statement is no statement: %w", filepath.Base(args[0]), err)
			}
			if keyText == "" {
				err := a.command(cmd.Context(), func(ctx context.Context, c *client) error {
					resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.GetResponse, error) {
						return n.Get(ctx, &adminv1.GetRequest{Kind: "zones", Name: said.Zone})
					})
					keyText = resp.GetResource().GetZone().GetSigningKey()
					return err
				})
				if err != nil {
					return err
				}
			}
			key, err := base64.StdEncoding.DecodeString(keyText)
			if err != nil {
				return misuse("--key: %v", err)
			}
			signature, err := base64.StdEncoding.DecodeString(doc.Signature)
			if err != nil {
				return fmt.Errorf("read %s: its signature is not base64", filepath.Base(args[0]))
			}
			st, ok := erasure.Verify(ed25519.PublicKey(key), []byte(doc.Statement), signature)
			if !ok {
				return fault.New(fault.Denied, "SIGNATURE_WRONG", "the statement is not signed by zone %s as this key has it: it was changed, or is another's", said.Zone)
			}
			return a.print(st, func(w io.Writer) {
				fmt.Fprintf(w, "signed by zone %s: customer %s, erased %s, %d keys, detail on %d nodes\n", st.Zone, st.Customer, st.ErasedAt.Format(time.RFC3339), st.Removed.Keys, len(st.Removed.Detail))
				if len(st.Pending) > 0 {
					fmt.Fprintf(w, "pending when it was written: %s\n", strings.Join(st.Pending, ", "))
				}
			})
		}}
	c.Flags().StringVar(&keyText, "key", "", "the zone's public key, base64; left out, a control node is asked")
	return c
}
