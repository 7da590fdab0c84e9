import type { ReactNode } from "react";

export const metadata = { title: "Ten chats, ten caps" };

export default function Layout({ children }: { children: ReactNode }) {
  return (
    <html lang="en">
      <body style={{ fontFamily: "system-ui", margin: "2rem", maxWidth: "70rem" }}>{children}</body>
    </html>
  );
}
