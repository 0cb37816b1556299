package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

type operatorToken struct {
	Name      string `json:"name"`
	Role      string `json:"role"`
	Zone      string `json:"zone,omitempty"`
	CreatedAt string `json:"created_at,omitempty"`
	CreatedBy string `json:"created_by,omitempty"`
	ExpiresAt string `json:"expires_at,omitempty"`
	TokenID   string `json:"token_id"`
	Token     string `json:"token,omitempty"`
}

func operatorOf(zone string, o *adminv1.Operator) operatorToken {
	return operatorToken{Name: o.GetName(), Role: o.GetRole(), Zone: zone, CreatedAt: clock(o.GetCreatedAt()), CreatedBy: o.GetCreatedBy(), ExpiresAt: clock(o.GetExpiresAt()), TokenID: o.GetTokenId()}
}

func (a *app) operatorCommand() *cobra.Command {
	var filter string
	list := &cobra.Command{Use: "list", Short: "List operators' tokens in each zone", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				answers, err := everywhere(ctx, a, c, func(ctx context.Context, n api) (*adminv1.ListOperatorsResponse, error) {
					return n.ListOperators(ctx, &adminv1.ListOperatorsRequest{Filter: filter})
				})
				if err != nil {
					return err
				}
				out := []operatorToken{}
				for _, zone := range sorted(answers) {
					for _, o := range answers[zone].GetOperators() {
						out = append(out, operatorOf(zone, o))
					}
				}
				return a.print(out, func(w io.Writer) {
					var lines [][]string
					for _, o := range out {
						lines = append(lines, []string{o.Zone, o.Name, o.Role, o.TokenID, o.CreatedBy, or(o.ExpiresAt, "never")})
					}
					rows(w, "ZONE NAME ROLE TOKEN CREATED-BY EXPIRES", lines)
				})
			})
		}}
	var removeZone string
	remove := &cobra.Command{Use: "remove NAME", Short: "End all tokens of an operator in a zone", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				_, err := inZone(ctx, c, removeZone, false, func(ctx context.Context, n api) (*adminv1.RemoveOperatorResponse, error) {
					return n.RemoveOperator(ctx, &adminv1.RemoveOperatorRequest{Name: args[0]})
				})
				if err != nil {
					return err
				}
				return a.done("Operator", args[0], "removed")
			})
		}}
	remove.Flags().StringVar(&removeZone, "zone", "", "in this zone; default that of the first control node")
	return group("operator", "Who may call the admin API of a zone", filtered(list, &filter), a.operatorCreateCommand(), remove)
}

func (a *app) operatorCreateCommand() *cobra.Command {
	req := &adminv1.CreateOperatorRequest{}
	var zone, have string
	var ttl time.Duration
	c := &cobra.Command{Use: "create NAME --role ROLE", Short: "Make a token of an operator; shows it once", Args: cobra.ExactArgs(1),
		Long: `Make a token of an operator in one zone. Roles: admin (everything, also what the catalog holds of other zones), zone-admin
(everything of the zone), support (customers, keys and usage), viewer (reads everything), auditor (reads everything but
customers). An operator has one role in a zone. --have-token registers in another zone a token that he holds already.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name, req.Ttl = args[0], durationpb.New(ttl)
			return a.command(cmd.Context(), func(ctx context.Context, c *client) error {
				if have != "" {
					data, err := os.ReadFile(have)
					if err != nil {
						return err
					}
					sum := sha256.Sum256([]byte(strings.TrimSpace(string(data))))
					req.TokenSha256 = hex.EncodeToString(sum[:])
				}
				resp, err := inZone(ctx, c, zone, false, func(ctx context.Context, n api) (*adminv1.CreateOperatorResponse, error) {
					return n.CreateOperator(ctx, req)
				})
				if err != nil {
					return err
				}
				out := operatorOf(zone, resp.GetOperator())
				out.Token = resp.GetToken()
				return a.print(out, func(w io.Writer) {
					fmt.Fprintf(w, "operator %s, %s, until %s\n", out.Name, out.Role, out.ExpiresAt)
					if out.Token != "" {
						fmt.Fprintf(w, "token: %s\nKeep it now: it cannot be shown again.\n", out.Token)
					}
				})
			})
		}}
	c.Flags().StringVar(&req.Role, "role", "", "admin, zone-admin, support, viewer or auditor")
	c.Flags().StringVar(&zone, "zone", "", "in this zone; default that of the first control node")
	c.Flags().DurationVar(&ttl, "ttl", 0, "how long the token lasts; default 90 days, at most 366")
	c.Flags().BoolVar(&req.Replace, "replace", false, "end the operator's other tokens")
	c.Flags().StringVar(&have, "have-token", "", "file with a token that the operator has in another zone")
	must(c.MarkFlagRequired("role"))
	return c
}
