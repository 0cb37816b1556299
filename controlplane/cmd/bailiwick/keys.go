package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (a *app) keyCommand() *cobra.Command {
	req := &adminv1.CreateKeyRequest{}
	var certificate string
	var count int32
	create := &cobra.Command{Use: "create --customer NAME", Short: "Create an API key and show it, once", Args: cobra.NoArgs,
		Long: `Create an API key and show it, once. With --certificate or --token-issuer and --token-subject the key has no text: it is bound
to a client's certificate (its public key, whoever signed it) or to whom a token names, where an API takes them (auth of an API).
With --count that many are made, a thousand at a time: an id and a key on each line. What was printed is there. If it ends with an
error because nobody answered, the thousand that it waited for may be there too, with texts that nobody has: "key list" names
them; of those after them none is.`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			for _, bound := range []string{"allow-from", "scope"} { // of a script whose variable is empty: what is meant to bind a key must not be passed over
				if said, _ := cmd.Flags().GetStringSlice(bound); cmd.Flags().Changed(bound) && len(said) == 0 {
					return misuse("--%s is empty: name what it binds the key to, or leave it out", bound)
				}
			}
			if req.Certificate, err = publicKey(certificate); err != nil {
				return err
			}
			if cmd.Flags().Changed("count") {
				if count < 1 {
					return misuse("--count %d: at least 1", count)
				}
				return a.manyKeys(cmd.Context(), req, int(count))
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				resp, err := createKey(ctx, c, req)
				if err != nil {
					return err
				}
				if resp.GetKey() == "" {
					return a.print(map[string]string{"id": resp.GetId()}, func(w io.Writer) { fmt.Fprintf(w, "id:  %s\nIt is known by what it is bound to.\n", resp.GetId()) })
				}
				return a.print(struct {
					ID  string `json:"id"`
					Key string `json:"key"`
				}{resp.GetId(), resp.GetKey()}, func(w io.Writer) {
					fmt.Fprintf(w, "id:  %s\nkey: %s\nKeep the key now: it cannot be shown again.\n", resp.GetId(), resp.GetKey())
				})
			})
		}}
	create.Flags().StringVar(&req.Customer, "customer", "", "whose key")
	create.Flags().StringVar(&req.Plan, "plan", "", "which subscription, by its plan; may be left out if there is one")
	create.Flags().StringVar(&req.Subscription, "subscription", "", "which subscription, by name")
	create.Flags().StringVar(&req.Zone, "zone", "", "the customer's zone; left out, the zones are asked one by one")
	create.Flags().StringVar(&certificate, "certificate", "", "bind the key to a client certificate: its PEM file, or the SHA-256 of its SubjectPublicKeyInfo in hex")
	create.Flags().StringVar(&req.TokenIssuer, "token-issuer", "", "bind the key to tokens of this issuer")
	create.Flags().StringVar(&req.TokenSubject, "token-subject", "", "whom the tokens name, in the claim that the API says")
	create.Flags().StringSliceVar(&req.Scopes, "scope", nil, "a scope that routes may ask for; may be given more than once, at most 16")
	create.Flags().StringSliceVar(&req.AllowFrom, "allow-from", nil, "an address or CIDR block that the key works from; may be given more than once, at most 32; none: from everywhere")
	create.Flags().StringSliceVar(&req.Labels, "label", nil, "NAME=VALUE; may be given more than once, at most 16")
	create.Flags().Int32Var(&count, "count", 1, "how many")
	must(create.MarkFlagRequired("customer"))

	var revokeZone string
	revoke := &cobra.Command{Use: "revoke ID", Short: "Revoke an API key, for ever", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				if err := revokeKey(ctx, c, args[0], revokeZone); err != nil {
					return err
				}
				return a.print(map[string]string{"kind": "Key", "name": args[0], "action": "revoked"}, func(w io.Writer) {
					fmt.Fprintf(w, "Key %s revoked\nat once: on all edges of its zone; a revocation waits for no ring\n", args[0])
				})
			})
		}}
	revoke.Flags().StringVar(&revokeZone, "zone", "", "the key's zone; left out, the zones are asked one by one")

	var customer, listZone, filter string
	list := &cobra.Command{Use: "list", Short: "List the API keys of a customer or of a zone", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				call := func(ctx context.Context, n api) (*adminv1.ListKeysResponse, error) {
					return n.ListKeys(ctx, &adminv1.ListKeysRequest{Customer: customer, Filter: filter})
				}
				var resp *adminv1.ListKeysResponse
				var err error
				if customer == "" && listZone == "" {
					resp, err = ask(ctx, c, c.urls, call)
				} else {
					resp, err = around(ctx, c, listZone, call)
				}
				if err != nil {
					return err
				}
				return a.printKeys(resp.GetKeys())
			})
		}}
	list.Flags().StringVar(&customer, "customer", "", "only this customer's")
	list.Flags().StringVar(&listZone, "zone", "", "ask this zone")
	list.Annotations = map[string]string{hasWide: "yes"}
	return group("key", "API keys", create, a.rotateCommand(), revoke, filtered(list, &filter))
}

// publicKey is the SHA-256 of a certificate's SubjectPublicKeyInfo, hex.
func publicKey(given string) (string, error) {
	if raw, err := hex.DecodeString(given); given == "" || err == nil && len(raw) == sha256.Size {
		return given, nil
	}
	data, err := os.ReadFile(given)
	if err != nil {
		return "", fmt.Errorf("read the certificate: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", misuse("%s holds no certificate in PEM, and is no SHA-256 in hex either", given)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("read the certificate in %s: %w", given, err)
	}
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:]), nil
}

func (a *app) rotateCommand() *cobra.Command {
	var zoneName string
	var overlap time.Duration
	var undo bool
	c := &cobra.Command{Use: "rotate ID", Short: "Create a key in the place of another, which works for a while longer and then ends by itself", Args: cobra.ExactArgs(1),
		Long: `Create a key in the place of another, of the same subscription: limits, quota and usage go on as they are. The old one
works for --overlap longer and then ends, on every edge and also on one that nobody reaches by then, by that edge's clock.
Back in two steps, before the end: rotate OLD --undo, after which the old key does not end, then revoke NEW.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if undo && cmd.Flags().Changed("overlap") {
				return misuse("--undo takes the end of the key away: it has no overlap")
			}
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				if undo {
					other, err := undoRotation(ctx, c, args[0], zoneName)
					if err != nil {
						return err
					}
					return a.print(map[string]string{"kind": "Key", "name": args[0], "action": "kept", "new_id": other}, func(w io.Writer) {
						fmt.Fprintf(w, "Key %s does not end any more. The other still works: bailiwick key revoke %s\n", args[0], other)
					})
				}
				resp, err := rotateKey(ctx, c, &adminv1.RotateKeyRequest{Id: args[0], Overlap: durationpb.New(overlap)}, zoneName)
				if err != nil {
					return err
				}
				return a.print(struct {
					ID      string `json:"id"`
					Key     string `json:"key"`
					OldID   string `json:"old_id"`
					OldEnds string `json:"old_expires_at"`
				}{resp.GetId(), resp.GetKey(), resp.GetOldId(), clock(resp.GetOldExpiresAt())}, func(w io.Writer) {
					fmt.Fprintf(w, "id:  %s\nkey: %s\nold: %s ends at %s\nKeep the key now: it cannot be shown again.\n", resp.GetId(), resp.GetKey(), resp.GetOldId(), clock(resp.GetOldExpiresAt()))
				})
			})
		}}
	c.Flags().StringVar(&zoneName, "zone", "", "the key's zone; left out, the zones are asked one by one")
	c.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long the old key works beside the new one; 0s: not at all, at most 2160h")
	c.Flags().BoolVar(&undo, "undo", false, "take the end of this key away, if it has not come")
	return c
}

// rotateKey never leaves a key behind whose text nobody has: if an answer was lost on the way and the next node says that
// the key exists, that rotation is undone and made anew.
func rotateKey(ctx context.Context, c *client, req *adminv1.RotateKeyRequest, zoneName string) (*adminv1.RotateKeyResponse, error) {
	for range 3 {
		req.RequestId = rand.Text()
		resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.RotateKeyResponse, error) { return n.RotateKey(ctx, req) })
		f, ok := fault.As(err)
		if !ok || f.Reason != "KEY_ALREADY_CREATED" || f.Meta["id"] == "" {
			return resp, err
		}
		if req.GetOverlap().AsDuration() == 0 { // the old one is gone: the new one, which was never seen, is rotated in its turn
			req.Id = f.Meta["id"]
			continue
		}
		if _, err := undoRotation(ctx, c, req.GetId(), zoneName); err != nil {
			return nil, fmt.Errorf("key %s was created and its text lost on the way; undo the rotation: %w", f.Meta["id"], err)
		}
		if err := revokeKey(ctx, c, f.Meta["id"], zoneName); err != nil {
			return nil, fmt.Errorf("key %s was created and its text lost on the way; revoke it: %w", f.Meta["id"], err)
		}
	}
	return nil, fault.New(fault.Unavailable, "ANSWER_LOST", "three keys were created, their texts lost on the way, and taken back: try later")
}

func undoRotation(ctx context.Context, c *client, id, zoneName string) (string, error) {
	req := &adminv1.UndoRotationRequest{Id: id, RequestId: rand.Text()}
	resp, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.UndoRotationResponse, error) {
		return n.UndoRotation(ctx, req)
	})
	return resp.GetNewId(), err
}

// createKey never leaves a key behind whose text nobody has: if an answer was lost on the way and the next node
// says that the key exists, that one is revoked and another made.
func createKey(ctx context.Context, c *client, req *adminv1.CreateKeyRequest) (*adminv1.CreateKeyResponse, error) {
	for range 3 {
		req.RequestId = rand.Text()
		resp, err := around(ctx, c, req.GetZone(), func(ctx context.Context, n api) (*adminv1.CreateKeyResponse, error) { return n.CreateKey(ctx, req) })
		f, ok := fault.As(err)
		if !ok || f.Reason != "KEY_ALREADY_CREATED" || f.Meta["id"] == "" {
			return resp, err
		}
		if err := revokeKey(ctx, c, f.Meta["id"], req.GetZone()); err != nil {
			return nil, fmt.Errorf("key %s was created and its text lost on the way; revoke it: %w", f.Meta["id"], err)
		}
	}
	return nil, fault.New(fault.Unavailable, "ANSWER_LOST", "three keys were created, their texts lost on the way, and revoked again: try later")
}

// keysAtOnce is how many keys the API makes in a call.
const keysAtOnce = 1000

// manyKeys makes keys and shows those of each call as soon as they are made: a text that is not shown is lost.
func (a *app) manyKeys(ctx context.Context, req *adminv1.CreateKeyRequest, count int) error {
	type made struct {
		ID  string `json:"id"`
		Key string `json:"key"`
	}
	for count > 0 {
		n := min(count, keysAtOnce)
		count -= n
		err := a.command(ctx, func(ctx context.Context, c *client) error {
			resp, err := createKeys(ctx, c, &adminv1.CreateKeysRequest{Key: req, Count: int32(n)})
			if err != nil {
				return err
			}
			for _, k := range resp.GetKeys() {
				if err := a.print(made{k.GetId(), k.GetKey()}, func(w io.Writer) { fmt.Fprintln(w, k.GetId(), k.GetKey()) }); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// createKeys is createKey of many.
func createKeys(ctx context.Context, c *client, req *adminv1.CreateKeysRequest) (*adminv1.CreateKeysResponse, error) {
	for range 3 {
		req.Key.RequestId = rand.Text()
		resp, err := around(ctx, c, req.GetKey().GetZone(), func(ctx context.Context, n api) (*adminv1.CreateKeysResponse, error) { return n.CreateKeys(ctx, req) })
		f, ok := fault.As(err)
		if !ok || f.Reason != "KEY_ALREADY_CREATED" || f.Meta["id"] == "" {
			return resp, err
		}
		lost := strings.Fields(f.Meta["id"])
		for i, id := range lost {
			if err := revokeKey(ctx, c, id, req.GetKey().GetZone()); err != nil {
				return nil, fmt.Errorf("keys were created and their texts lost on the way; revoke %s: %w", strings.Join(lost[i:], " "), err)
			}
		}
	}
	return nil, fault.New(fault.Unavailable, "ANSWER_LOST", "keys were created three times, their texts lost on the way, and revoked again: try later")
}

func revokeKey(ctx context.Context, c *client, id, zoneName string) error {
	req := &adminv1.RevokeKeyRequest{Id: id, RequestId: rand.Text()}
	_, err := around(ctx, c, zoneName, func(ctx context.Context, n api) (*adminv1.RevokeKeyResponse, error) { return n.RevokeKey(ctx, req) })
	return err
}

func (a *app) printKeys(keys []*adminv1.Key) error {
	type key struct {
		ID           string `json:"id"`
		Customer     string `json:"customer"`
		Subscription string `json:"subscription"`
		Plan         string `json:"plan"`
		Status       string `json:"status"`
		CreatedAt    string `json:"created_at"`
		ExpiresAt    string `json:"expires_at"`
		ReplacedBy   string `json:"replaced_by"`
		Replaces     string `json:"replaces"`

		Kind      string   `json:"kind,omitempty"`
		Scopes    []string `json:"scopes,omitempty"`
		AllowFrom []string `json:"allow_from,omitempty"`
		Labels    []string `json:"labels,omitempty"`
	}
	slices.SortStableFunc(keys, func(a, b *adminv1.Key) int { // a zone's come in the order of their ids
		return cmp.Or(cmp.Compare(a.GetCustomer(), b.GetCustomer()), a.GetCreatedAt().AsTime().Compare(b.GetCreatedAt().AsTime()), cmp.Compare(a.GetId(), b.GetId()))
	})
	out := []key{}
	var lines [][]string
	for _, k := range keys {
		one := key{k.GetId(), k.GetCustomer(), k.GetSubscription(), k.GetPlan(), k.GetStatus(), clock(k.GetCreatedAt()), clock(k.GetExpiresAt()), k.GetReplacedBy(), k.GetReplaces(), k.GetKind(), k.GetScopes(), k.GetAllowFrom(), k.GetLabels()}
		out = append(out, one)
		line := []string{one.ID, one.Customer, one.Subscription, one.Plan, one.Status, one.CreatedAt, one.ExpiresAt, or(one.ReplacedBy, one.Replaces)}
		if a.output == "wide" {
			line = append(line, strings.Join(one.Scopes, ","), strings.Join(one.AllowFrom, ","), strings.Join(one.Labels, ","))
		}
		lines = append(lines, line)
	}
	heading := "ID CUSTOMER SUBSCRIPTION PLAN STATUS CREATED ENDS OTHER"
	if a.output == "wide" {
		heading += " SCOPES FROM LABELS"
	}
	return a.print(out, func(w io.Writer) { rows(w, heading, lines) })
}

func (a *app) joinTokenCommand() *cobra.Command {
	req := &adminv1.CreateJoinTokenRequest{}
	var ttl time.Duration
	create := &cobra.Command{Use: "create --region REGION --name NAME", Short: "Create a token with which one edge joins, once", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				req.RequestId = rand.Text()
				if ttl != 0 {
					req.Ttl = durationpb.New(ttl)
				}
				resp, err := ask(ctx, c, c.urls, func(ctx context.Context, n api) (*adminv1.CreateJoinTokenResponse, error) {
					return n.CreateJoinToken(ctx, req)
				})
				if err != nil {
					return err
				}
				return a.print(struct {
					Token   string `json:"token"`
					Expires string `json:"expires_at"`
				}{resp.GetToken(), clock(resp.GetExpiresAt())}, func(w io.Writer) {
					fmt.Fprintf(w, "token:   %s\nexpires: %s\n", resp.GetToken(), clock(resp.GetExpiresAt()))
				})
			})
		}}
	create.Flags().StringVar(&req.Kind, "kind", "edge", "what joins: edge or control")
	create.Flags().StringVar(&req.Region, "region", "", "where it joins")
	create.Flags().StringVar(&req.Name, "name", "", "under which name")
	create.Flags().DurationVar(&ttl, "ttl", 0, "how long the token lives; default and at most 15m")
	must(create.MarkFlagRequired("region"))
	must(create.MarkFlagRequired("name"))
	return group("join-token", "Tokens with which nodes join", create)
}
