package main

import (
	"bytes"
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

// exportTimeout is for one node; the server ends an export after a minute.
const exportTimeout = 70 * time.Second

func (a *app) customerExportCommand() *cobra.Command {
	var file, zoneName string
	c := &cobra.Command{Use: "export NAME", Short: "Write all that the zone holds of a customer as one JSON document", Args: cobra.ExactArgs(1),
		Long: `Write all that the zone holds of a customer as one JSON document: the record, keys without their digests, usage,
corrections, quotas, alerts and the rows of single requests. What could not be read is listed under "missing".`,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.timeout = max(a.timeout, exportTimeout)
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				c.try = exportTimeout
				doc, err := around(ctx, c, zoneName, func(ctx context.Context, n api) ([]byte, error) { return export(ctx, n, args[0]) })
				if err != nil {
					return err
				}
				var told struct {
					Missing []string `json:"missing"`
				}
				if err := json.Unmarshal(doc, &told); err != nil {
					return fmt.Errorf("read the export of %s: %w", args[0], err)
				}
				for _, m := range told.Missing {
					fmt.Fprintf(a.err, "warning: missing: %s\n", legible(m))
				}
				if file == "" {
					_, err = a.out.Write(doc)
					return err
				}
				return writePrivate(file, doc)
			})
		}}
	c.Flags().StringVarP(&file, "file", "f", "", "write to this file, readable by you alone; default standard output")
	c.Flags().StringVar(&zoneName, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	return c
}

// export reads the whole document before a byte of it is written: half a document is no answer.
func export(ctx context.Context, n api, customer string) ([]byte, error) {
	stream, err := n.Export(ctx, &adminv1.ExportRequest{Customer: customer})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var doc bytes.Buffer
	for stream.Receive() {
		doc.Write(stream.Msg().GetChunk())
	}
	return doc.Bytes(), stream.Err()
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
			a.timeout = max(a.timeout, exportTimeout)
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				c.try = exportTimeout
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
